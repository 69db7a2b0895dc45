"""What is returned is the caller's: writing into it changes neither the model nor later results, nor the other way."""

from collections import OrderedDict

import pytest
import torch
from helpers.analytic import mlp_with_validation, randn, squared_error
from torch import Tensor, nn

from metasp_lite.calculus import Curvature, minimise, solvers
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    SingleLoss,
    gradient,
    loss_directional_derivatives,
    losses_at,
    per_example_gradients,
)
from metasp_lite.calculus.min_norm import min_norm_pair
from metasp_lite.calculus.optimum import adam, lbfgs
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.influence import influence, leave_one_out, pseudo_update_influence
from metasp_lite.influence.leaving_out import require_examples, retrained_without
from metasp_lite.stages.fixed import fixed_embedding, fixed_sensitivity, pretraining_influence
from metasp_lite.stages.unrolled import Adam, ShortRun, unrolled_sensitivity
from metasp_lite.stages.updated import JointObjective, ProximalObjective, joint_influence, proximal_sensitivity

OBJECTIVE, VALIDATION, START = mlp_with_validation()
THETA = minimise(OBJECTIVE, START)
CURVATURE = Curvature(OBJECTIVE, THETA)
LOSSES, V = OBJECTIVE.losses, randn(33, seed=7)
PAIR = randn(4, seed=1), randn(4, seed=2)
WITHOUT_STEPS = ShortRun(OBJECTIVE, Adam(), torch.zeros(0, 4, dtype=torch.int64))
RUN = ShortRun(OBJECTIVE, Adam(), torch.arange(12).view(3, 4))
CONSTANT = randn(33, seed=3)


def one_layer(outputs):
    parts = {"embedding": nn.Sequential(nn.Linear(3, 2, bias=False)), "head": nn.Sequential(nn.Linear(2, outputs))}
    return nn.Sequential(OrderedDict(parts)).double()


def stage(outputs, seed):
    losses = ExampleLosses(
        one_layer(outputs),
        randn(9, 3, seed=seed),
        randn(9, outputs, seed=seed + 1),
        lambda z, y: squared_error(z, y).sum(1),
    )
    return Objective(losses, 0.5)


FIRST, SECOND = stage(1, 30), stage(2, 40)
W = 0.3 * randn(6, seed=50)
PRETRAINED = Curvature(FIRST, torch.cat([W, 0.3 * randn(3, seed=51)]), damping=1.0)
FINETUNED = Curvature(SECOND, torch.cat([W, 0.3 * randn(6, seed=52)]), damping=1.0)
TARGET, EXACT = SECOND.losses, solvers.Exact()
NEAR = Curvature(ProximalObjective(SECOND, W, 0.5), FINETUNED.theta, damping=1.0)
JOINT = Curvature(JointObjective(FIRST, SECOND, 0.4), torch.cat([PRETRAINED.theta, FINETUNED.theta[6:]]), damping=1.0)

RETURNS = {  # calls whose results are tensors, or tuples or lists or dictionaries of them
    "flatten_parameters": lambda: flatten_parameters(LOSSES.model),
    "flatten_parameters of one": lambda: flatten_parameters(nn.Sequential(LOSSES.model[1])),
    "losses": lambda: LOSSES(THETA),
    "losses_at": lambda: losses_at(LOSSES.model, {}, (LOSSES.inputs, LOSSES.labels)),
    "gradient": lambda: gradient(OBJECTIVE, THETA),
    "gradient of a linear function": lambda: gradient(lambda theta: theta @ CONSTANT, THETA),
    "gradient of a sum": lambda: gradient(lambda theta: theta.sum(), THETA),
    "per_example_gradients": lambda: per_example_gradients(LOSSES, THETA),
    "per_example_gradients of one": lambda: per_example_gradients(SingleLoss(lambda theta: theta @ CONSTANT), THETA),
    "directional derivatives": lambda: loss_directional_derivatives(LOSSES, THETA, V),
    "minimise": lambda: minimise(OBJECTIVE, THETA),
    "minimise from elsewhere": lambda: minimise(OBJECTIVE, START),
    "adam": lambda: adam(OBJECTIVE, THETA, 0),
    "lbfgs": lambda: lbfgs(OBJECTIVE, THETA, 1),
    "curvature.theta": lambda: CURVATURE.theta,
    "curvature.gradient": lambda: CURVATURE.gradient,
    "curvature.dense": lambda: CURVATURE.dense(),
    "curvature.cholesky": lambda: CURVATURE.cholesky,
    "curvature.solve": lambda: CURVATURE.solve(V),
    "curvature.residual": lambda: CURVATURE.residual(V, V),
    "product": lambda: CURVATURE @ V,
    "product of a batch": lambda: CURVATURE.on_batch(V, torch.tensor([0, 1])),
    **{
        f"{solver}": lambda solver=solver: solver(CURVATURE, V)
        for solver in (
            EXACT,
            solvers.Identity(),
            solvers.OuterProduct(),
            solvers.GaussNewton(),
            solvers.Neumann(1),
            solvers.Neumann(5),
            solvers.ConjugateGradient(5),
            solvers.LiSSA(1, 20),
            solvers.LiSSA(5, 20, repeats=2),
        )
    },
    "exact columns": lambda: EXACT(CURVATURE, torch.stack([V, V], dim=1)),
    "nothing to solve": lambda: solvers.ConjugateGradient(5)(CURVATURE, torch.zeros_like(V)),
    "solve_each": lambda: solvers.solve_each(solvers.Identity(), CURVATURE, torch.stack([V, V])),
    "min_norm_pair": lambda: min_norm_pair(*PAIR),
    "influence": lambda: influence(LOSSES, VALIDATION, CURVATURE, EXACT),
    "pseudo_update_influence": lambda: pseudo_update_influence(OBJECTIVE, VALIDATION, THETA, step=0.1, steps=2),
    "leave_one_out": lambda: leave_one_out(CURVATURE, VALIDATION, torch.tensor([1])),
    "retrained_without": lambda: retrained_without(CURVATURE, torch.tensor([1])),
    "fixed_sensitivity": lambda: fixed_sensitivity(FINETUNED, TARGET, EXACT),
    "pretraining_influence": lambda: pretraining_influence(PRETRAINED, W[None], EXACT),
    "fixed_embedding": lambda: fixed_embedding(PRETRAINED, FINETUNED, TARGET, EXACT),
    "proximal_sensitivity": lambda: proximal_sensitivity(NEAR, TARGET, EXACT),
    "joint_influence": lambda: joint_influence(JOINT, TARGET, EXACT),
    "penalties": lambda: (NEAR.objective.l2, JOINT.objective.l2),
    "a run of no steps": lambda: WITHOUT_STEPS(THETA),
    "a run": lambda: RUN(THETA),
    "back through a run of no steps": lambda: WITHOUT_STEPS.pull_back(THETA, LOSSES),
    "unrolled_sensitivity": lambda: unrolled_sensitivity(RUN, THETA[:20], THETA[20:], LOSSES),
}


def tensors(value):
    if isinstance(value, Tensor):
        return [value]
    return [each for part in (value.values() if isinstance(value, dict) else value) for each in tensors(part)]


@pytest.mark.parametrize("call", RETURNS)
def test_writing_into_a_result_changes_nothing_else(call):
    models = [LOSSES.model, FIRST.losses.model, SECOND.losses.model]
    held = [*(p for model in models for p in model.parameters()), THETA, START, V, W, CONSTANT, *PAIR]
    held += [LOSSES.inputs, VALIDATION.losses.inputs, NEAR.objective.center]
    before = [tensor.detach().clone() for tensor in held]
    results = tensors(RETURNS[call]())
    kept = [each.detach().clone() for each in results]
    with torch.no_grad():
        for each in results:
            each.fill_(torch.nan)
    assert all(torch.equal(*pair) for pair in zip(held, before, strict=True))
    assert all(torch.equal(*pair) for pair in zip(tensors(RETURNS[call]()), kept, strict=True))


def test_writing_into_iterates_does_not_change_the_next():
    for solver in (solvers.ConjugateGradient(4), solvers.Neumann(4), solvers.LiSSA(4, 20, repeats=2)):
        expected = [each.clone() for each in solver.iterates(CURVATURE, V)]
        vector = V.clone()
        for found, each in zip(solver.iterates(CURVATURE, vector), expected, strict=True):
            assert torch.equal(found, each)
            found.fill_(torch.nan)
            vector.fill_(torch.nan)


def test_changing_the_model_and_the_arguments_afterwards_changes_no_result():
    objective, _, start = mlp_with_validation()
    theta, examples, center = start.clone(), torch.tensor([1, 2]), W.clone()
    flat, curvature = flatten_parameters(objective.losses.model), Curvature(objective, theta)
    kept, near = require_examples(examples, curvature), ProximalObjective(SECOND, center, 0.5)
    results = [curvature.gradient, curvature.theta, curvature.dense(), curvature @ V, objective.losses(start), flat]
    before = [each.clone() for each in results]
    with torch.no_grad():
        for parameter in objective.losses.model.parameters():
            parameter.fill_(torch.nan)
    theta.fill_(torch.nan), examples.fill_(9), center.fill_(torch.nan)
    assert all(torch.equal(*pair) for pair in zip(results, before, strict=True))
    assert torch.equal(curvature @ V, before[3])
    assert kept.tolist() == [1, 2]
    assert torch.equal(near.center, W)
