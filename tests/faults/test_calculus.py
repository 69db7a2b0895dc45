"""What the doors of ``calculus`` refuse: every argument with values of the wrong type, kind, shape, sign or size."""

from functools import cache

import pytest
import torch
from helpers.analytic import mlp_with_validation, randn
from helpers.bad_values import (
    NO_COUNT,
    NO_FUNCTION,
    NO_NONNEGATIVE,
    NO_OBJECT,
    NO_POSITIVE,
    NO_SEED,
    NO_WHOLE,
    Door,
    no_places,
    no_tensor,
    no_vector_like,
    refused,
    rows,
)

from metasp_lite.calculus import (
    Curvature,
    ExampleLosses,
    Objective,
    SingleLoss,
    gradient,
    loss_directional_derivatives,
    min_norm_pair,
    minimise,
    per_example_gradients,
    solvers,
)
from metasp_lite.calculus.solvers import KFAC


@cache
def problem():
    return mlp_with_validation()


@cache
def optimum():
    training, _, start = problem()
    return minimise(training, start)


def curvature():
    return Curvature(problem()[0], optimum(), 0.1)


def theta():
    return problem()[2]


def like_theta():
    """Derivatives at a θ of NaN are NaN; they are refused where an influence or an optimum is made of them."""
    values = {bad: value for bad, value in no_vector_like(theta()).items() if bad not in ("nan", "inf")}
    return values | {"another dtype": theta().float()}


def no_index(n):
    """None is all of them."""
    return {
        **{k: v for k, v in no_places(n).items() if k != "none"},
        "empty": torch.zeros(0, dtype=torch.int64),
        "int32": torch.tensor([0], dtype=torch.int32),
    }


def losses():
    return problem()[0].losses


def vector():
    return randn(33, seed=1)


def solve(solver, **settings):
    target = settings.pop("vector")
    return getattr(solvers, solver)(**settings)(curvature(), target)


NO_STEP = {bad: value for bad, value in NO_POSITIVE.items() if bad != "none"}
NO_COUNT_OR_ALL = {bad: value for bad, value in NO_COUNT.items() if bad != "none"}
COLUMNS = ("Exact", "GaussNewton", "KFAC", "EKFAC", "Nystrom", "Arnoldi")  # take several right-hand sides


def solver_door(name, good, bad):
    return Door(
        lambda **given: solve(name, **given),
        lambda: {"vector": vector(), **good},
        lambda: {
            "vector": {k: v for k, v in no_vector_like(vector()).items() if k != "matrix" or name not in COLUMNS},
            **bad,
        },
        says={"vector": "vector|right-hand side"},
    )


def inputs():
    return losses().inputs


def labels():
    return losses().labels


DOORS = {
    "Curvature": Door(
        Curvature,
        lambda: {"objective": problem()[0], "theta": optimum(), "damping": 0.1},
        lambda: {"objective": NO_OBJECT, "theta": no_vector_like(theta()), "damping": NO_NONNEGATIVE},
        says={"theta": "θ|theta|objective|loss"},
    ),
    "product": Door(
        lambda vector: curvature() @ vector,
        lambda: {"vector": vector()},
        lambda: {"vector": no_vector_like(vector())},
    ),
    "on_batch": Door(
        lambda vector, index: curvature().on_batch(vector, index),
        lambda: {"vector": vector(), "index": torch.tensor([0, 3])},
        lambda: {"vector": no_vector_like(vector()), "index": {**no_places(40), "empty": torch.tensor([]).long()}},
    ),
    "ExampleLosses": Door(
        ExampleLosses,
        lambda: {"model": losses().model, "inputs": inputs(), "labels": labels()},
        lambda: {
            "model": NO_OBJECT,
            "inputs": {**no_tensor(), "scalar": inputs()[0, 0, 0], "empty": inputs()[:0], "fewer": inputs()[:3]},
            "labels": {
                **no_tensor(),
                "scalar": labels()[0],
                "empty": labels()[:0],
                "fewer": labels()[:3],
                "fractions": labels().float(),
                "negative": labels() - 1,
                "truths": labels() > 0,
                "int32": labels().int(),
            },
            "loss": NO_FUNCTION,
        },
        says={"labels": "label"},
    ),
    "losses-at": Door(
        lambda theta, index=None: losses()(theta, index),
        lambda: {"theta": theta()},
        lambda: {"theta": like_theta(), "index": no_index(40)},
        says={"theta": "θ|theta"},
    ),
    "outputs-at": Door(
        lambda theta, index=None: losses().outputs(theta, index),
        lambda: {"theta": theta()},
        lambda: {"theta": {k: v for k, v in like_theta().items() if k not in ("integers",)}, "index": no_index(40)},
        says={"theta": "θ|theta|network with parameters of"},
    ),
    "objective-at": Door(
        lambda theta, index=None: problem()[0](theta, index),
        lambda: {"theta": theta(), "index": torch.tensor([0, 39])},
        lambda: {"theta": like_theta(), "index": no_index(40)},
        says={"theta": "θ|theta"},
    ),
    "single-loss-at": Door(
        lambda index: SingleLoss(problem()[1])(theta(), index),
        lambda: {"index": torch.tensor([0, 0])},
        lambda: {"index": no_index(1)},
    ),
    "Objective": Door(
        lambda losses, l2, theta: Objective(losses, l2)(theta),
        lambda: {"losses": losses(), "l2": 0.1, "theta": theta()},
        lambda: {"losses": NO_FUNCTION, "l2": NO_NONNEGATIVE},
    ),
    "SingleLoss": Door(
        lambda loss: SingleLoss(loss)(theta()),
        lambda: {"loss": problem()[1]},
        lambda: {"loss": {**NO_FUNCTION, "vector": losses()}},
    ),
    "gradient": Door(
        gradient,
        lambda: {"objective": problem()[1], "theta": theta()},
        lambda: {
            "objective": {**NO_FUNCTION, "vector": losses(), "integer": lambda theta: torch.tensor(1)},
            "theta": like_theta(),
        },
        says={"objective": "objective|function", "theta": "θ|theta|objective|gradient"},
    ),
    "per_example_gradients": Door(
        per_example_gradients,
        lambda: {"losses": losses(), "theta": theta()},
        lambda: {"losses": {**NO_FUNCTION, "scalar": lambda theta: theta.sum()}, "theta": like_theta()},
        says={"theta": "θ|theta|gradient"},
    ),
    "loss_directional_derivatives": Door(
        loss_directional_derivatives,
        lambda: {"losses": losses(), "theta": theta(), "direction": vector()},
        lambda: {
            "losses": {**NO_FUNCTION, "scalar": lambda theta: theta.sum()},
            "theta": like_theta(),
            "direction": {k: v for k, v in no_vector_like(vector()).items() if k not in ("nan", "inf")},
        },
        says={"theta": "θ|theta|derivative", "direction": "direction"},
    ),
    "min_norm_pair": Door(
        min_norm_pair,
        lambda: {"first": randn(5, seed=2), "second": randn(5, seed=3)},
        lambda: {"first": no_vector_like(randn(5, seed=2)), "second": no_vector_like(randn(5, seed=3))},
        says={"first": "first|shapes|dtypes", "second": "second|shapes|dtypes"},
    ),
    "minimise": Door(
        minimise,
        lambda: {"objective": problem()[0], "theta": optimum()},
        lambda: {
            "objective": {**NO_OBJECT, "function": lambda theta: theta.sum()},
            "theta": like_theta(),
            "tolerance": NO_POSITIVE,
            "adam_steps": {**NO_WHOLE, "negative": -1},
            "lbfgs_steps": {**NO_WHOLE, "negative": -1},
            "newton_steps": {**NO_WHOLE, "negative": -1},
            "newton_products": NO_COUNT,
        },
        says={"theta": "θ|theta|objective"},
    ),
    "Exact": solver_door("Exact", {}, {}),
    "Identity": solver_door("Identity", {}, {}),
    "OuterProduct": solver_door("OuterProduct", {}, {}),
    "GaussNewton": solver_door("GaussNewton", {}, {}),
    **{
        factors: solver_door(
            factors, {"rank": 3, "draws": 2}, {"rank": NO_COUNT_OR_ALL, "draws": NO_COUNT_OR_ALL, "seed": NO_SEED}
        )
        for factors in ("KFAC", "EKFAC")
    },
    "Nystrom": solver_door("Nystrom", {"rank": 3}, {"rank": {**NO_COUNT, "huge": 34}, "seed": NO_SEED}),
    "Arnoldi": solver_door(
        "Arnoldi",
        {"rank": 2, "products": 4},
        {"rank": {**NO_COUNT, "huge": 5}, "products": {**NO_COUNT, "huge": 34}, "seed": NO_SEED},
    ),
    "Neumann": solver_door("Neumann", {"terms": 3}, {"terms": NO_COUNT, "step": NO_STEP}),
    "ConjugateGradient": solver_door(
        "ConjugateGradient",
        {"iterations": 3},
        {"iterations": NO_COUNT, "tolerance": NO_STEP, "preconditioner": {"text": "x", "number": 1.0, "class": KFAC}},
    ),
    "LiSSA": solver_door(
        "LiSSA",
        {"depth": 3, "batch": 4},
        {
            "depth": NO_COUNT,
            "batch": {**NO_COUNT, "huge": 41},
            "repeats": NO_COUNT,
            "step": NO_STEP,
            "seed": NO_SEED,
        },
    ),
}


@pytest.mark.parametrize("name", DOORS)
def test_the_door_opens(name):
    DOORS[name].try_with()


@pytest.mark.parametrize(("name", "argument", "bad"), rows(DOORS))
def test_bad_values_are_refused_by_name(name, argument, bad):
    refused(DOORS[name], argument, bad)
