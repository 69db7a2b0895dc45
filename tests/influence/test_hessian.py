"""Influence by the Hessian against closed forms and autograd, its sign by training again."""

import math

import pytest
import torch
from helpers.analytic import randn
from helpers.influence_truths import assert_close, closed_form_leave_one_out

from metasp_lite.calculus.losses import ExampleLosses, Objective, gradient
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, Identity
from metasp_lite.influence.hessian import influence, influence_on_each


def closed_form(data, x, y):
    """−∇ℓ_iᵀ H⁻¹ ∇ℓ(V) of ridge regression at its optimum."""
    theta = data.optimum()
    solution = torch.linalg.solve(data.hessian(), data.validation_gradient(theta))
    return -(x @ theta - y) * (x @ solution)


@pytest.mark.parametrize("solver", [Exact(), ConjugateGradient(8)], ids=["exact", "cg"])
def test_influence_on_ridge_is_its_closed_form(fitted_ridge, solver):
    data, curvature = fitted_ridge
    answer = influence(data.objective.losses, data.validation, curvature, solver)
    assert_close(answer, closed_form(data, data.x, data.y))


def test_influence_of_examples_that_were_not_trained_on(fitted_ridge):
    data, curvature = fitted_ridge
    x, y = randn(5, 8, seed=80), randn(5, seed=81)
    others = ExampleLosses(data.objective.losses.model, x, y, data.objective.losses.loss)
    assert_close(influence(others, data.validation, curvature, Exact()), closed_form(data, x, y))


def test_influence_with_identity_is_minus_the_inner_product_of_gradients(trained):
    training, validation, theta, curvature = trained
    leaf = theta.clone().requires_grad_()
    jacobian = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in training.losses(leaf)])
    expected = -jacobian @ torch.autograd.grad(validation(leaf), leaf)[0]
    assert_close(influence(training.losses, validation, curvature, Identity()), expected)


def test_influences_of_all_examples_sum_to_that_of_the_regularisation(trained):
    """At a stationary point Σ ∇ℓ_i = −nλθ̂, so Σ I_i = nλ θ̂ᵀH⁻¹∇ℓ(V)."""
    training, validation, theta, curvature = trained
    solution = torch.linalg.solve(torch.func.hessian(training)(theta), gradient(validation, theta))
    total = influence(training.losses, validation, curvature, Exact()).sum()
    expected = len(training.losses) * training.l2 * theta.dot(solution)
    assert float(total) == pytest.approx(float(expected), rel=1e-10)  # a sum of forty that partly cancels


def test_negative_influence_helps(fitted_ridge):
    """Sign, by training again with a thousandth more weight on one example: I < 0 lowers the validation loss."""
    data, curvature = fitted_ridge
    answer = influence(data.objective.losses, data.validation, curvature, Exact())
    assert (answer < 0).any()
    assert (answer > 0).any()
    change = closed_form_leave_one_out(data, range(70), fraction=-1e-3)
    assert torch.equal(answer < 0, change < 0)


def test_influence_refuses_numbers_that_are_not_finite(fitted_ridge):
    data, curvature = fitted_ridge
    x, y = data.x.clone(), data.y.clone()
    x[2, 0] = math.nan
    bad = ExampleLosses(data.objective.losses.model, x, y, data.objective.losses.loss)
    with pytest.raises(FloatingPointError, match="the derivative of an example's loss is nan at position 2"):
        influence(bad, data.validation, curvature, Exact())
    with pytest.raises(FloatingPointError, match="the gradient is nan"):
        influence(data.objective.losses, Objective(bad), curvature, Exact())


@pytest.mark.parametrize("solver", [Exact(), Identity(), ConjugateGradient(8)], ids=["exact", "identity", "cg"])
def test_influences_on_each_are_those_on_one(trained, solver):
    training, validation, _, curvature = trained
    queries = validation.losses
    found = influence_on_each(training.losses, queries, curvature, solver)
    assert found.shape == (len(training.losses), len(queries))
    for q in range(len(queries)):
        one = Objective(ExampleLosses(queries.model, queries.inputs[[q]], queries.labels[[q]], queries.loss))
        # the same solve; the products of gradients are summed in another order
        torch.testing.assert_close(
            found[:, q], influence(training.losses, one, curvature, solver), rtol=1e-8, atol=1e-10
        )
