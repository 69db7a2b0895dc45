"""Networks that people have: attention, recurrence, half precision, functions of their own; no raw error at a door."""

import math
import traceback

import pytest
import torch
from helpers.analytic import logistic, mlp, randn
from torch import nn

from metasp_lite.calculus import losses as losses_module
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    gradient,
    loss_directional_derivatives,
    per_example_gradients,
)
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import (
    ConjugateGradient,
    Exact,
    GaussNewton,
    Identity,
    LiSSA,
    Neumann,
    OuterProduct,
    solve_each,
)
from metasp_lite.influence import influence

N, X, Y = 6, randn(6, 3, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.into(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Sine(torch.autograd.Function):
    """In the style that torch's transforms refuse."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, slope):
        return ctx.saved_tensors[0].cos() * slope


class OfItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), nn.Linear(3, 3)
        self.first, self.second = self.layers[0][1], self.layers[1]

    def forward(self, x):
        return self.second(Sine.apply(self.first(x.flatten(1))))


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(12, 3))


MODELS = {
    "attention": Attending,
    "fused attention": Fused,
    "an encoder layer": lambda: encoder(),
    "an encoder layer in evaluation": lambda: encoder().eval(),
    "an LSTM": Recurrent,
    "a function of its own": OfItsOwn,
}


def built(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Objective(ExampleLosses(MODELS[name]().double(), X, Y), 0.05)


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_of_first_and_second_order(name):
    """Products against central differences of gradients; all first derivatives against a loop of plain autograd."""
    objective = built(name)
    losses, theta = objective.losses, flatten_parameters(objective.losses.model)
    u, h = randn(len(theta), seed=2), 1e-5
    u /= u.norm()
    curvature = Curvature(objective, theta)
    product = curvature @ u
    difference = (gradient(objective, theta + h * u) - gradient(objective, theta - h * u)) / (2 * h)
    torch.testing.assert_close(product, difference, rtol=0, atol=1e-8)  # h² and 1e-16/h
    dense = curvature.dense()
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(dense @ u, product, rtol=0, atol=1e-12)
    leaf = theta.clone().requires_grad_()
    rows = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses(leaf)])
    torch.testing.assert_close(per_example_gradients(losses, theta), rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss_directional_derivatives(losses, theta, u), rows @ u, rtol=0, atol=1e-12)
    assert influence(losses, objective, Curvature(objective, theta, 5.0), Exact()).isfinite().all()


def test_torchs_choice_of_attention_is_put_back():
    def choice():
        cuda = torch.backends.cuda
        return (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        )

    before = choice()
    objective = built("attention")
    Curvature(objective, flatten_parameters(objective.losses.model))
    assert choice() == before
    with pytest.raises(ValueError, match="cannot be computed"):
        ExampleLosses(Attending().double(), X[:, :, :2], Y)(flatten_parameters(Attending().double()))
    assert choice() == before


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_only_a_missing_rule_makes_the_gradients_come_one_by_one(kind, monkeypatch):
    objective = mlp(n=12)[1]
    theta = flatten_parameters(objective.losses.model)
    expected = per_example_gradients(objective.losses, theta)

    def failing(message):
        def vmap(_):
            raise kind(message)

        return vmap

    monkeypatch.setattr(losses_module, "vmap", failing("not enough memory: you tried to allocate 9 GB for vmap"))
    if kind is torch.OutOfMemoryError:
        with pytest.raises(kind):
            per_example_gradients(objective.losses, theta)
    monkeypatch.setattr(losses_module, "vmap", failing("The size of tensor a (3) must match the size of tensor b (4)"))
    with pytest.raises(kind, match="The size of tensor a"):
        per_example_gradients(objective.losses, theta)
    if kind is RuntimeError:
        monkeypatch.setattr(losses_module, "vmap", failing("Batching rule not implemented for aten::lstm.input"))
        torch.testing.assert_close(per_example_gradients(objective.losses, theta), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_way_out(dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    losses, theta = ExampleLosses(model, X.to(dtype), Y), flatten_parameters(model)
    for door in (
        lambda: Curvature(Objective(losses), theta),
        lambda: minimise(Objective(losses), theta),
        lambda: gradient(Objective(losses), theta),
        lambda: per_example_gradients(losses, theta),
        lambda: loss_directional_derivatives(losses, theta, theta),
    ):
        with pytest.raises(ValueError, match=rf"θ is {dtype}, too coarse for an influence: .* float32 \(\.float\(\)\)"):
            door()
    assert Curvature(Objective(ExampleLosses(model.float(), X.float(), Y)), theta.float()).gradient.isfinite().all()


def test_a_model_that_writes_into_its_parameters_is_refused_and_they_stay():
    words = torch.arange(6).view(6, 1)
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=0.1), nn.Flatten()).double()
    losses, theta = ExampleLosses(model, words, Y), flatten_parameters(model)
    before = theta.clone()
    with pytest.raises(ValueError, match="writes into its parameters at every call"):
        Curvature(Objective(losses), theta)
    assert torch.equal(theta, before)
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=0.1), nn.Flatten(), nn.Linear(3, 3)).double()
    frozen = model[0].weight.requires_grad_(False)
    before = frozen.clone()
    with pytest.raises(ValueError, match=r"the frozen parameter '0\.weight' moves at every call"):
        ExampleLosses(model, words, Y)(flatten_parameters(model))
    assert torch.equal(frozen, before)


# ------------------------------------------------------------------------------------------------ no raw error


SOLVERS = [
    Exact(),
    Identity(),
    OuterProduct(),
    GaussNewton(),
    Neumann(3),
    ConjugateGradient(3),
    ConjugateGradient(30, tolerance=1e-6),
    LiSSA(3, 12),
]
BAD_VECTORS = {
    "too long": randn(34, seed=7),
    "too short": randn(32, seed=7),
    "a row": randn(1, 33, seed=7),
    "a number": torch.tensor(1.0).double(),
    "no entry": torch.zeros(0).double(),
    "three axes": randn(33, 1, 1, seed=7),
    "float32": randn(33, seed=7).float(),
    "whole numbers": torch.ones(33, dtype=torch.int64),
    "complex": randn(33, seed=7).to(torch.complex128),
    "on another device": randn(33, seed=7).to("meta"),
    "NaN": torch.full((33,), math.nan).double(),
    "infinite": torch.full((33,), -math.inf).double(),
    "a list": [0.0] * 33,
    "None": None,
}


def refused(call):
    """Refused by a sentence of this package, not by whatever torch says further down."""
    with pytest.raises((ValueError, FloatingPointError)) as caught:
        call()
    where = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert "metasp_lite" in where, where
    return str(caught.value)


@pytest.mark.parametrize("case", BAD_VECTORS)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}")
def test_a_right_hand_side_that_is_not_like_theta_is_refused_in_a_sentence(solver, case):
    objective = mlp(n=12)[1]
    curvature = Curvature(objective, flatten_parameters(objective.losses.model), 1.0)
    said = refused(lambda: solver(curvature, BAD_VECTORS[case]))
    assert "the right-hand side" in said or "must be a dense Tensor that holds values" in said


@pytest.mark.parametrize("case", [name for name in BAD_VECTORS if name not in ("NaN", "infinite")])
def test_products_and_directions_that_are_not_like_theta_are_refused_in_a_sentence(case):
    objective, bad = mlp(n=12)[1], BAD_VECTORS[case]
    theta = flatten_parameters(objective.losses.model)
    curvature = Curvature(objective, theta, 1.0)
    for call in (
        lambda: curvature @ bad,
        lambda: curvature.on_batch(bad, torch.tensor([0])),
        lambda: loss_directional_derivatives(objective.losses, theta, bad),
    ):
        said = refused(call)
        assert "give" in said or "must be a dense Tensor that holds values" in said


@pytest.mark.parametrize(
    "theta",
    [BAD_VECTORS[case] for case in BAD_VECTORS if case not in ("float32", "on another device")],
    ids=[case for case in BAD_VECTORS if case not in ("float32", "on another device")],
)
def test_a_theta_that_is_none_is_refused_in_a_sentence(theta):
    objective = mlp(n=12)[1]
    for door in (lambda: Curvature(objective, theta), lambda: minimise(objective, theta)):
        refused(door)


@pytest.mark.parametrize(
    "index",
    [torch.tensor([12]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([True] * 12), torch.tensor([[0]])],
)
def test_a_batch_that_does_not_exist_is_refused_in_a_sentence(index):
    objective = mlp(n=12)[1]
    curvature = Curvature(objective, flatten_parameters(objective.losses.model))
    for given in (index, torch.zeros(0, dtype=torch.int64)):
        said = refused(lambda given=given: curvature.on_batch(curvature.theta, given))
        assert said.startswith("index ")
        assert "places as int64" in said or "between 0 and 11" in said


@pytest.mark.parametrize("rows", [torch.zeros(33), torch.zeros(0, 33), torch.zeros(2, 32), torch.zeros(1, 1, 33)])
def test_rows_that_are_not_like_theta_are_refused_in_a_sentence(rows):
    objective = mlp(n=12)[1]
    curvature = Curvature(objective, flatten_parameters(objective.losses.model), 1.0)
    for solver in SOLVERS:
        refused(lambda solver=solver: solve_each(solver, curvature, rows.double()))


@pytest.mark.parametrize("tolerance", [0, -1e-9, math.nan, math.inf])
def test_training_to_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match=f"tolerance={tolerance} must be a number, positive and finite"):
        minimise(logistic(), torch.zeros(4).double(), tolerance=tolerance)


def test_an_objective_that_does_not_depend_on_theta_and_one_that_is_linear():
    class Fixed:
        def __init__(self, function):
            self.function = function

        def __len__(self):
            return 2

        def __call__(self, theta, index=None):
            losses = self.function(theta)
            return losses if index is None else losses[index]

    class WithoutPenalty:
        losses, l2 = Fixed(lambda theta: theta.detach() ** 2), 0.0

        def __call__(self, theta, index=None):
            return self.losses(theta, index).mean()

    theta = randn(2, seed=1)
    with pytest.raises(ValueError, match="does not depend on θ: something in it is detached"):
        Curvature(WithoutPenalty(), theta)
    curvature = Curvature(Objective(Fixed(lambda theta: 3 * theta)), theta)
    assert torch.equal(curvature @ theta, torch.zeros(2).double())
    assert torch.equal(curvature.dense(), torch.zeros(2, 2).double())
    with torch.no_grad():
        assert (Curvature(Objective(Fixed(lambda theta: theta**2)), theta) @ theta).isfinite().all()
