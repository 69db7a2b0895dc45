"""Gauss–Newton and Fisher matrices against dense ones by autograd, for every loss that they are offered."""

from dataclasses import dataclass

import pytest
import torch
from helpers.analytic import mlp, randn, ridge, squared_error
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.labels import binary_cross_entropy, cross_entropy
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import GaussNewton, OuterProduct

N, X, WEIGHTS = 9, randn(9, 4, seed=1), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
HARD, SOFT, REAL = torch.tensor([0, 1, 2] * 3), (2 * randn(9, 3, seed=5)).softmax(dim=1), randn(9, 3, seed=6)
ONE = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)).double()
THREE = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
SIX = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 6), nn.Unflatten(1, (2, 3))).double()
CASES = {  # network, labels, loss of each example
    "classes": (THREE, HARD, cross_entropy),
    "probabilities": (THREE, SOFT, cross_entropy),
    "one-hot": (THREE, F.one_hot(HARD).double(), cross_entropy),
    "weights": (THREE, HARD, lambda z, y: F.cross_entropy(z, y, WEIGHTS, reduction="none")),
    "weights and probabilities": (THREE, SOFT, lambda z, y: F.cross_entropy(z, y, WEIGHTS, reduction="none")),
    "smoothing": (THREE, HARD, lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)),
    "temperature": (THREE, HARD, lambda z, y: 3 * F.cross_entropy(z / 2, y, reduction="none")),
    "binary": (ONE, HARD.clamp(max=1), binary_cross_entropy),
    "binary and probabilities": (ONE, SOFT[:, 0], binary_cross_entropy),
    "binary with a weight": (
        ONE,
        SOFT[:, 0],
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none", pos_weight=WEIGHTS[2]),
    ),
    "squared errors": (THREE, REAL, lambda z, y: ((z - y) ** 2).sum(dim=1)),
    "one squared error": (ONE, REAL[:, 0], squared_error),
    "Huber": (THREE, REAL, lambda z, y: F.huber_loss(z, y, reduction="none").mean(dim=1)),
    "absolute errors": (THREE, REAL, lambda z, y: (z - y).abs().sum(dim=1)),
    "linear": (THREE, REAL, lambda z, y: (z * y).sum(dim=1)),
    "two heads": (SIX, HARD, lambda z, y: cross_entropy(z[:, 0], y) + 2 * cross_entropy(z[:, 1], y)),
}


def dense_gauss_newton(losses, theta):
    """(1/n) Σ JᵀAJ, with the Jacobian J of the outputs and A, the Hessian of the loss in them, by torch.func."""

    def outputs(theta):
        return torch.func.functional_call(losses.model, losses.unflatten(theta), (losses.inputs,))

    z, jacobian = outputs(theta), torch.func.jacrev(outputs)(theta).reshape(N, -1, len(theta))
    total = torch.zeros(len(theta), len(theta)).double()
    for i in range(N):
        label = losses.labels[i : i + 1]
        inner = torch.func.hessian(lambda z, label=label: losses.loss(z[None], label)[0])(z[i]).reshape(
            2 * [z[i].numel()]
        )
        total += jacobian[i].T @ inner @ jacobian[i] / N
    return total


@pytest.mark.parametrize("case", CASES)
def test_gauss_newton_is_the_jacobian_of_the_outputs_around_the_second_derivatives_of_the_loss(case):
    model, labels, loss = CASES[case]
    objective = Objective(ExampleLosses(model, X, labels, loss), 0.2)
    theta = randn(len(flatten_parameters(model)), seed=2)
    matrix = dense_gauss_newton(objective.losses, theta) + 0.3 * torch.eye(len(theta)).double()
    columns = randn(len(theta), 2, seed=3)
    found = GaussNewton()(Curvature(objective, theta, damping=0.1), columns)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, columns), rtol=0, atol=1e-10)  # condition below 1000
    one = GaussNewton()(Curvature(objective, theta, damping=0.1), columns[:, 0])
    torch.testing.assert_close(one, found[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["probabilities", "binary", "squared errors", "smoothing", "weights"])
def test_gauss_newton_is_the_hessian_of_a_network_that_is_linear_in_its_parameters(case):
    outputs, labels, loss = CASES[case]
    model = nn.Sequential(
        nn.Linear(4, 1 if outputs is ONE else 3), *([nn.Flatten(0)] if outputs is ONE else [])
    ).double()
    objective, theta = Objective(ExampleLosses(model, X, labels, loss), 0.2), randn(5 if outputs is ONE else 15, seed=2)
    vector = randn(len(theta), seed=3)
    expected = torch.linalg.solve(torch.func.hessian(objective)(theta), vector)
    torch.testing.assert_close(GaussNewton()(Curvature(objective, theta), vector), expected, rtol=0, atol=1e-10)


def test_gauss_newton_refuses_losses_that_it_does_not_hold_for():
    theta = randn(27, seed=2)
    objective = Objective(SingleLoss(lambda theta: theta.square().sum()))
    with pytest.raises(ValueError, match="losses are SingleLoss, whose outputs and labels are not known; give Example"):
        GaussNewton()(Curvature(objective, theta), theta)

    class Weighted(ExampleLosses):
        def __call__(self, theta, index=None):
            return 2 * super().__call__(theta, index)

    with pytest.raises(ValueError, match="losses are Weighted"):
        GaussNewton()(Curvature(Objective(Weighted(THREE, X, HARD), 0.2), theta), theta)
    concave = Objective(ExampleLosses(THREE, X, REAL, lambda z, y: -((z - y) ** 2).sum(dim=1)), 0.2)
    with pytest.raises(ValueError, match=r"not convex in the outputs \(a second derivative of -2\)"):
        GaussNewton()(Curvature(concave, theta), theta)
    model, unpenalised = mlp(l2=0.0)
    theta = torch.zeros_like(flatten_parameters(model))
    with pytest.raises(ValueError, match="matrix is singular; raise the l2 regularisation or the damping"):
        GaussNewton()(Curvature(unpenalised, theta), theta)


@pytest.mark.parametrize("damping", [1e-17, 1e-15])
def test_outer_product_refuses_a_damping_that_leaves_nothing_but_rounding(damping):
    objective = Objective(ridge(n=5).objective.losses)
    with pytest.raises(ValueError, match=r"is too small beside the gradients for torch\.float64; raise the damping"):
        OuterProduct()(Curvature(objective, randn(8, seed=6), damping), randn(8, seed=7))


@dataclass
class Penalty:
    """The losses of an objective under a penalty of its own for each parameter."""

    losses: ExampleLosses
    l2: torch.Tensor

    def __call__(self, theta, index=None):
        return self.losses(theta, index).mean() + 0.5 * (self.l2 * theta).dot(theta)


def test_gauss_newton_refuses_a_matrix_that_is_singular_to_rounding_although_it_has_a_factor():
    """At θ = 0 the losses do not depend on the first layer, so that its part of the matrix is its penalty alone."""
    _, objective = mlp()
    penalties, theta = torch.full((33,), 0.1).double(), torch.zeros(33).double()
    GaussNewton()(Curvature(Penalty(objective.losses, penalties), theta), randn(33, seed=3))
    penalties[:21] = 1e-17
    with pytest.raises(ValueError, match="matrix is singular; raise the l2 regularisation or the damping"):
        GaussNewton()(Curvature(Penalty(objective.losses, penalties), theta), randn(33, seed=3))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_what_counts_as_convex_does_not_hang_on_the_scale_of_the_loss(scale):
    """The second derivatives of a cross-entropy have an eigenvalue of 0, which rounding may make negative."""
    objective = Objective(ExampleLosses(THREE, X, HARD, lambda z, y: scale * cross_entropy(z, y)), 0.2 * scale)
    theta, vector = randn(27, seed=2), randn(27, seed=3)
    expected = GaussNewton()(Curvature(Objective(ExampleLosses(THREE, X, HARD), 0.2), theta), vector) / scale
    found = GaussNewton()(Curvature(objective, theta), vector)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * expected.abs().max().item())
