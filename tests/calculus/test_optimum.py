"""Training reaches the optimum that a closed form or another library knows, or says that it did not."""

import math

import numpy as np
import pytest
import torch
from helpers.analytic import Quadratic, Sine, logistic, mlp_with_validation, randn, ridge, with_spectrum
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as ScikitRidge
from torch import nn

from metasp_lite.calculus.curvature import NegativeCurvatureError
from metasp_lite.calculus.losses import ExampleLosses, Objective, gradient
from metasp_lite.calculus.optimum import adam, minimise
from metasp_lite.calculus.parameters import flatten_parameters

# J is λ-strongly convex in the convex problems: ‖θ − θ̂‖ ≤ ‖∇J‖/λ.
REACHED = 1e-10


def separable():
    """Twenty examples that a line separates: without regularisation the loss falls for ever and has no minimum."""
    x = randn(20, 4, seed=0)
    return Objective(ExampleLosses(nn.Sequential(nn.Linear(4, 2).double()), x, (x[:, 0] > 0).long()))


def test_ridge_optimum_is_that_of_the_normal_equations_and_of_scikit_learn():
    data = ridge()
    theta = minimise(data.objective, torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(theta, data.optimum(), rtol=0, atol=REACHED / data.l2)
    # scikit-learn minimises ‖y − Xθ‖² + α‖θ‖², which is 2nJ for α = nλ.
    scikit = ScikitRidge(alpha=len(data.y) * data.l2, fit_intercept=False).fit(data.x.numpy(), data.y.numpy())
    torch.testing.assert_close(theta, torch.as_tensor(scikit.coef_), rtol=0, atol=REACHED / data.l2)


def test_logistic_optimum_is_that_of_scikit_learn():
    objective = logistic()
    theta = minimise(objective, torch.zeros(4, dtype=torch.float64))
    x, y = objective.losses.inputs.numpy(), objective.losses.labels.numpy()
    # scikit-learn minimises C Σ ℓ_i + ½‖θ‖², which is J/λ for C = 1/(nλ).
    model = LogisticRegression(C=1 / (len(y) * objective.l2), fit_intercept=False, solver="newton-cholesky", tol=1e-8)
    scikit = torch.as_tensor(model.fit(x, y).coef_[0])
    # Both are as far from the optimum as their gradient says, scikit-learn's is measured here.
    reached = REACHED + float(gradient(objective, scikit).norm())
    assert reached < 2e-8
    torch.testing.assert_close(theta, scikit, rtol=0, atol=reached / objective.l2)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10, 1e-12])
def test_a_network_is_trained_to_a_minimum_with_the_gradient_that_was_asked_for(tolerance):
    objective, _, start = mlp_with_validation()
    theta = minimise(objective, start, tolerance=tolerance)
    assert gradient(objective, theta).norm() <= tolerance
    assert np.linalg.eigvalsh(torch.func.hessian(objective)(theta).numpy())[0] > 0
    assert objective(theta) < objective(start)


def test_newton_alone_and_both_together_find_the_same_convex_optimum():
    objective, start = logistic(), torch.zeros(4, dtype=torch.float64)
    newton = minimise(objective, start, lbfgs_steps=0)
    torch.testing.assert_close(newton, minimise(objective, start), rtol=0, atol=2 * REACHED / objective.l2)


def test_an_optimum_is_returned_as_it_was():
    data = ridge()
    theta = data.optimum()
    assert gradient(data.objective, theta).norm() <= REACHED
    assert torch.equal(minimise(data.objective, theta), theta)


def test_neither_the_start_nor_the_models_parameters_are_changed():
    objective, _, start = mlp_with_validation()
    kept = start.clone()
    theta = minimise(objective, start, tolerance=1e-3)
    assert torch.equal(start, kept)
    assert torch.equal(flatten_parameters(objective.losses.model), kept)
    assert not theta.requires_grad


def test_training_that_may_take_no_step_says_how_far_it_is():
    objective, start = logistic(), torch.zeros(4, dtype=torch.float64)
    norm = float(gradient(objective, start).norm())
    with pytest.raises(RuntimeError, match=f"stopped at gradient norm {norm:.2g}, above 1e-10; allow more lbfgs_steps"):
        minimise(objective, start, lbfgs_steps=0, newton_steps=0)


def test_training_that_may_take_no_step_accepts_an_optimum():
    data = ridge()
    assert torch.equal(minimise(data.objective, data.optimum(), lbfgs_steps=0, newton_steps=0), data.optimum())


def test_too_few_steps_raise():
    with pytest.raises(RuntimeError, match="stopped at gradient norm"):
        minimise(logistic(), torch.zeros(4, dtype=torch.float64), lbfgs_steps=2, newton_steps=0)


def test_single_precision_cannot_reach_what_was_asked_and_says_so():
    data = ridge()
    losses = data.objective.losses
    single = Objective(
        ExampleLosses(losses.model.float(), losses.inputs.float(), losses.labels.float(), losses.loss), 0.1
    )
    with pytest.raises(RuntimeError, match=r"stopped at gradient norm .*, or use float64"):
        minimise(single, torch.zeros(8), tolerance=1e-12, newton_steps=3)


def test_a_loss_without_a_minimum_raises():
    with pytest.raises((RuntimeError, NegativeCurvatureError)):
        minimise(separable(), torch.zeros(10, dtype=torch.float64), tolerance=1e-14, lbfgs_steps=30, newton_steps=3)


def test_newton_does_not_walk_up_to_a_maximum():
    theta = torch.full((3,), math.pi / 2 + 0.1, dtype=torch.float64)  # Σ sin is concave there
    with pytest.raises(NegativeCurvatureError) as caught:
        minimise(Objective(Sine(3)), theta, lbfgs_steps=0)
    assert caught.value.curvature == pytest.approx(-math.cos(0.1), rel=1e-12)  # −sin at all three


@pytest.mark.parametrize("newton_steps", [0, 20])
def test_a_saddle_without_a_gradient_is_not_taken_for_a_minimum(newton_steps):
    curved = torch.linspace(0.1, 2, 30, dtype=torch.float64)
    curved[7] = -1e-3
    zero = torch.zeros(30, dtype=torch.float64)
    with pytest.raises(NegativeCurvatureError) as caught:
        minimise(Objective(Quadratic(torch.diag(curved))), zero, newton_steps=newton_steps)
    assert -1e-3 <= caught.value.curvature < 0
    curved[7] = 1e-3
    assert torch.equal(minimise(Objective(Quadratic(torch.diag(curved))), zero), zero)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "count"), [(30, 10), (300, 40)])
def test_flat_directions_are_no_saddle(size, count, seed):
    """More parameters than examples and no penalty: many minima, each of them right."""
    x, y = randn(count, size, seed=seed), randn(count, 1, seed=seed + 10)
    losses = ExampleLosses(nn.Linear(size, 1, bias=False).double(), x, y, lambda z, y: ((z - y) ** 2).flatten())
    theta = minimise(Objective(losses), torch.zeros(size, dtype=torch.float64))
    # the gradient, 2 xᵀ(residuals)/n, is below 1e-10, and x has singular values above √size − √count > 2
    assert (x @ theta - y[:, 0]).norm() < REACHED * count / 4


@pytest.mark.parametrize(
    "steps", [{}, {"lbfgs_steps": 0}, {"newton_steps": 0}], ids=["both", "newton-alone", "lbfgs-alone"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused(steps, value):
    objective = logistic()
    objective.losses.inputs[3, 1] = value
    with pytest.raises(FloatingPointError, match="objective is nan"):
        minimise(objective, torch.zeros(4, dtype=torch.float64), **steps)


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="objective is nan"):
        minimise(logistic(), torch.full((4,), math.nan, dtype=torch.float64))


def test_adam_first_leads_to_the_same_optimum_and_is_torchs():
    data, start = ridge(), torch.zeros(8, dtype=torch.float64)
    torch.testing.assert_close(
        minimise(data.objective, start, adam_steps=30), data.optimum(), rtol=0, atol=REACHED / data.l2
    )
    leaf = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=0.01)
    for _ in range(30):
        optimiser.zero_grad()
        data.objective(leaf).backward()
        optimiser.step()
    assert torch.equal(adam(data.objective, start, 30), leaf.detach())
    assert torch.equal(adam(data.objective, start, 0), start)


@pytest.mark.parametrize("seed", range(3))
def test_a_shallow_saddle_is_seen_where_its_curvature_is_a_hundredth_of_the_largest(seed):
    spectrum = torch.logspace(-3, 1, 400, dtype=torch.float64)
    spectrum[0] = -0.1
    with pytest.raises(NegativeCurvatureError):
        minimise(Objective(Quadratic(with_spectrum(spectrum, seed))), torch.zeros(400, dtype=torch.float64))
