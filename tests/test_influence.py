"""Influence against closed forms, retraining (here and by scikit-learn) and differentiation of the update itself."""

import math

import numpy as np
import pytest
import torch
from helpers.analytic import Quadratic, Sine, logistic, logistic_data, mlp_with_validation, randn, ridge, with_spectrum
from sklearn.linear_model import LogisticRegression

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss, binary_cross_entropy, gradient
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, Identity, Neumann
from metasp_lite.influence.hessian import influence
from metasp_lite.influence.leaving_out import leave_one_out, minimise_all, retrained_without
from metasp_lite.influence.pseudo_update import pseudo_update_influence
from metasp_lite.networks import logistic_regression

# Sums of at most a hundred float64 terms and one solve with a condition number near 10: differences near 1e-14.
ROUNDING = 1e-12


def assert_close(actual, expected, share=ROUNDING):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= share * expected.norm()


@pytest.fixture(scope="module")
def fitted_ridge():
    data = ridge()
    return data, Curvature(data.objective, data.optimum())


@pytest.fixture(scope="module")
def trained():
    """A network at a minimum: training objective, validation loss, θ̂ and its curvature."""
    training, validation, start = mlp_with_validation()
    theta = minimise(training, start, tolerance=1e-13)
    return training, validation, theta, Curvature(training, theta)


@pytest.fixture(scope="module")
def fitted_logistic():
    objective = logistic()
    x, y = logistic_data(25, seed=40)
    validation = Objective(ExampleLosses(logistic_regression(4), x, y, binary_cross_entropy))
    theta = minimise(objective, torch.zeros(4, dtype=torch.float64), tolerance=1e-12)
    return objective, validation, Curvature(objective, theta)


def closed_form(data, x, y):
    """−∇ℓ_iᵀ H⁻¹ ∇ℓ(V) of ridge regression at its optimum."""
    theta = data.optimum()
    solution = torch.linalg.solve(data.hessian(), data.validation_gradient(theta))
    return -(x @ theta - y) * (x @ solution)


def closed_form_leave_one_out(data, examples, fraction):
    before = data.validation_loss(data.optimum())
    after = [data.validation_loss(data.optimum(int(example), fraction)) for example in examples]
    return torch.tensor(after, dtype=torch.float64) - before


# ------------------------------------------------------------------------------------------------------- influence


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
    with pytest.raises(FloatingPointError, match="an influence is nan at position 2"):
        influence(bad, data.validation, curvature, Exact())
    with pytest.raises(FloatingPointError, match="the right-hand side is nan"):
        influence(data.objective.losses, Objective(bad), curvature, Exact())


# --------------------------------------------------------------------------------------------------- leave one out


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_leave_one_out_on_ridge_is_the_closed_form_without_that_weight(fitted_ridge, fraction):
    data, curvature = fitted_ridge
    examples = torch.arange(70)  # more than one chunk of 64
    answer = leave_one_out(curvature, data.validation, examples, fraction=fraction)
    expected = closed_form_leave_one_out(data, examples, fraction)
    # Retraining stops at ‖∇J₋ᵢ‖ ≤ 1e-9, so θ is off by at most 1e-9/λ (J₋ᵢ is λ-strongly convex) and the loss by that
    # times its slope, here at most twice the slope at the optimum.
    slope = 2 * float(data.validation_gradient(data.optimum()).norm())
    assert (answer - expected).abs().max() <= 1e-9 / data.l2 * slope
    assert expected.abs().max() > 1e4 * 1e-9 / data.l2 * slope * fraction  # which is far below what is measured


def test_leave_one_out_answers_in_the_order_of_the_examples(fitted_ridge):
    data, curvature = fitted_ridge
    every = leave_one_out(curvature, data.validation, torch.arange(70), tolerance=1e-13)
    some = leave_one_out(curvature, data.validation, torch.tensor([9, 3, 9]), tolerance=1e-13)
    torch.testing.assert_close(some, every[[9, 3, 9]], rtol=0, atol=1e-12)  # 1e-13/λ, times a slope below 1


def test_influence_predicts_leave_one_out_the_better_the_less_is_left_out(fitted_ridge):
    data, curvature = fitted_ridge
    predicted = -influence(data.objective.losses, data.validation, curvature, Exact()) / 70
    strong = predicted.abs().argsort(descending=True)[:20]
    error = []
    for fraction in (1e-2, 1e-4):
        truth = leave_one_out(curvature, data.validation, strong, fraction=fraction, tolerance=1e-14)
        error.append((truth / (fraction * predicted[strong]) - 1).abs().max().item())
    # The next term of the expansion is proportional to f: a hundredth of the fraction leaves a hundredth of the error,
    # to the share of the term after it (f = 1e-2) and of the rounding of a difference of losses (1e-16/1e-7).
    assert error[1] < 1e-4
    assert error[1] == pytest.approx(error[0] / 100, rel=0.05)


def test_leave_one_out_on_a_network_is_predicted_too(trained):
    training, validation, _, curvature = trained
    predicted = -influence(training.losses, validation, curvature, Exact()) / len(training.losses)
    examples = torch.arange(40)
    truth = leave_one_out(curvature, validation, examples, fraction=1e-4, tolerance=1e-13)
    # f = 1e-4 leaves a relative error of that order; rounding of the loss adds 1e-16/1e-4 in absolute terms.
    torch.testing.assert_close(truth / 1e-4, predicted, rtol=5e-3, atol=1e-5 * float(predicted.abs().max()))


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_leave_one_out_on_logistic_regression_is_scikit_learns_retraining(fitted_logistic, fraction):
    objective, validation, curvature = fitted_logistic
    x, y = objective.losses.inputs.numpy(), objective.losses.labels.numpy()
    examples = torch.tensor([0, 7, 19, 33, 58])
    answer = leave_one_out(curvature, validation, examples, fraction=fraction)
    expected, reached = [], []
    for example in examples.tolist():
        weight = np.ones(60)
        weight[example] -= fraction
        # C Σ w_i ℓ_i + ½‖θ‖² is J₋ᵢ/λ for C = 1/(nλ), with n = 60 whatever the weights.
        model = LogisticRegression(C=1 / (60 * objective.l2), fit_intercept=False, solver="newton-cholesky", tol=1e-8)
        theta = torch.as_tensor(model.fit(x, y, sample_weight=weight).coef_[0])
        without = gradient(objective, theta) - fraction / 60 * (
            (torch.sigmoid(objective.losses.inputs[example] @ theta) - y[example]) * objective.losses.inputs[example]
        )
        reached.append(float(without.norm()))
        expected.append(float(validation(theta) - validation(curvature.theta)))
    # Each side is off by at most its gradient over λ in θ, times the slope of the validation loss: ours stops at 1e-9,
    # scikit-learn's gradient is measured.  (Newton's last step overshoots its tol of 1e-8 by far.)
    slope = 2 * float(gradient(validation, curvature.theta).norm())
    tolerance = (1e-9 + max(reached)) / objective.l2 * slope
    assert max(reached) < 2e-8
    assert (answer - torch.tensor(expected, dtype=torch.float64)).abs().max() <= tolerance
    assert min(map(abs, expected)) > 10 * tolerance


def test_leave_one_out_starts_at_an_optimum_only(fitted_ridge):
    data, _ = fitted_ridge
    elsewhere = Curvature(data.objective, data.optimum() + 0.01)
    with pytest.raises(RuntimeError, match=r"above 1e-09: train to an optimum first"):
        leave_one_out(elsewhere, data.validation, torch.tensor([0]))


def test_leave_one_out_refuses_a_damped_curvature(fitted_ridge):
    data, _ = fitted_ridge
    damped = Curvature(data.objective, data.optimum(), damping=0.1)
    with pytest.raises(ValueError, match=r"damping=0\.1: give the undamped curvature"):
        leave_one_out(damped, data.validation, torch.tensor([0]))


@pytest.mark.parametrize("examples", [[70], [0, -1], []])
def test_leave_one_out_refuses_an_example_that_does_not_exist(fitted_ridge, examples):
    data, curvature = fitted_ridge
    with pytest.raises(ValueError, match="at least one index between 0 and 69"):
        leave_one_out(curvature, data.validation, torch.tensor(examples, dtype=torch.long))


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, math.nan])
def test_leave_one_out_refuses_a_fraction_that_is_none(fitted_ridge, fraction):
    data, curvature = fitted_ridge
    with pytest.raises(ValueError, match=f"fraction={fraction} must lie above 0 and be at most 1"):
        leave_one_out(curvature, data.validation, torch.tensor([0]), fraction=fraction)


@pytest.mark.parametrize("tolerance", [0.0, -1e-9, math.nan])
def test_leave_one_out_refuses_a_tolerance_that_is_none(fitted_ridge, tolerance):
    """A NaN would be above every gradient, and nothing would be trained."""
    data, curvature = fitted_ridge
    with pytest.raises(ValueError, match=f"tolerance={tolerance} must be above 0"):
        leave_one_out(curvature, data.validation, torch.tensor([0]), tolerance=tolerance)


def test_leave_one_out_refuses_a_stationary_point_that_is_no_minimum():
    objective = Objective(Sine(3))
    curvature = Curvature(objective, torch.full((3,), math.pi / 2, dtype=torch.float64))  # the maximum of Σ sin
    with pytest.raises(NegativeCurvatureError) as caught:
        leave_one_out(curvature, objective, torch.tensor([0]))
    assert caught.value.curvature == pytest.approx(-1)


def nan_validation(data):
    """Return the mean loss of the held-out examples with a NaN among their inputs."""
    x, y = (part.clone() for part in data.held_out)
    x[0] = math.nan
    return Objective(ExampleLosses(data.objective.losses.model, x, y, data.objective.losses.loss))


def test_leave_one_out_refuses_a_validation_loss_that_is_not_finite(fitted_ridge):
    data, curvature = fitted_ridge
    with pytest.raises(FloatingPointError, match="a change of the validation loss is nan"):
        leave_one_out(curvature, nan_validation(data), torch.tensor([0]))


# ------------------------------------------------------------------------------------------------- pseudo-updates


def by_autograd(training, validation, theta, step, steps):
    """Write the update out with the weights E as a leaf and differentiate the whole run: n ∂ℓ(V, θ_K)/∂E at E = 0."""
    n = len(training.losses)
    weights = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    theta = theta.clone().requires_grad_()
    for _ in range(steps):
        objective = training(theta) + weights.dot(training.losses(theta)) / n
        (gradient_,) = torch.autograd.grad(objective, theta, create_graph=True)
        theta = theta - step * gradient_
    return n * torch.autograd.grad(validation(theta), weights)[0]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_pseudo_update_influence_is_the_derivative_of_the_update_from_any_theta(steps, l2):
    training, validation, start = mlp_with_validation(l2)
    theta = start + randn(33, seed=90)  # nowhere near stationary
    assert gradient(training, theta).norm() > 0.1
    answer = pseudo_update_influence(training, validation, theta, step=0.5, steps=steps)
    assert_close(answer, by_autograd(training, validation, theta, 0.5, steps))


def test_one_pseudo_update_uses_the_validation_gradient_where_it_leads():
    """K = 1: −a ∇L(θ) ∇ℓ(V, θ'), with the gradient at the moved θ' and the Jacobian at θ."""
    training, validation, start = mlp_with_validation()
    moved = start - 0.5 * gradient(training, start)
    expected = 0.5 * influence(
        training.losses, lambda t: validation(t - start + moved), Curvature(training, start), Identity()
    )
    answer = pseudo_update_influence(training, validation, start, step=0.5)
    assert_close(answer, expected)
    unmoved = 0.5 * influence(training.losses, validation, Curvature(training, start), Identity())
    assert (answer - unmoved).norm() > 0.01 * unmoved.norm()  # the difference is one that the test can see


def test_one_small_pseudo_update_has_the_signs_of_identity():
    training, validation, theta = mlp_with_validation()
    limit = influence(training.losses, validation, Curvature(training, theta), Identity())
    error = []
    for step in (1e-4, 1e-6):
        answer = pseudo_update_influence(training, validation, theta, step=step)
        error.append(float((answer / step - limit).norm() / limit.norm()))
    assert torch.equal(answer.sign(), limit.sign())
    assert error[1] < 1e-5
    assert error[1] == pytest.approx(error[0] / 100, rel=0.01)  # the distance is of first order in the step


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_at_a_stationary_point_k_pseudo_updates_are_k_neumann_terms(trained, steps):
    training, validation, theta, curvature = trained
    step = 1 / curvature.largest_eigenvalue
    expected = influence(training.losses, validation, curvature, Neumann(steps, step))
    # K steps of size a move θ by at most Ka‖∇J‖, below 1e-10, and change the answer by a share of that order.
    assert steps * step * curvature.gradient.norm() < 1e-10
    answer = pseudo_update_influence(training, validation, theta, step=step, steps=steps)
    assert_close(answer, expected, share=1e-10)


def test_away_from_a_stationary_point_they_are_not(trained):
    training, validation, theta, _ = trained
    theta = theta + 0.3 * randn(33, seed=91)
    curvature = Curvature(training, theta, damping=0.0)
    step = 0.5 / curvature.largest_eigenvalue
    series = influence(training.losses, validation, curvature, Neumann(5, step))
    answer = pseudo_update_influence(training, validation, theta, step=step, steps=5)
    assert (answer - series).norm() > 0.01 * series.norm()


def test_many_pseudo_updates_approach_the_exact_influence_as_fast_as_the_series(trained):
    training, validation, theta, curvature = trained
    step, steps = 1 / curvature.largest_eigenvalue, 300
    exact = influence(training.losses, validation, curvature, Exact())
    left = (1 - step * curvature.smallest_eigenvalue) ** steps
    assert left < 0.05
    answer = pseudo_update_influence(training, validation, theta, step=step, steps=steps)
    # The error −∇L (I − aH)^K H⁻¹∇ℓ(V) is at most (1 − aλmin)^K of the longest it can be.
    solution = Exact()(curvature, gradient(validation, theta))
    jacobian = torch.func.jacrev(training.losses)(theta)
    assert (answer - exact).norm() <= left * torch.linalg.matrix_norm(jacobian, 2) * solution.norm()


def test_pseudo_update_leaves_theta_and_the_model_alone():
    training, validation, theta = mlp_with_validation()
    kept = theta.clone()
    answer = pseudo_update_influence(training, validation, theta, step=0.5, steps=2)
    assert torch.equal(theta, kept)
    assert not answer.requires_grad
    assert all(parameter.grad is None for parameter in training.losses.model.parameters())


@pytest.mark.parametrize(("step", "steps"), [(0.0, 1), (-0.1, 1), (math.nan, 1), (0.1, 0), (0.1, -2)])
def test_pseudo_update_refuses_steps_that_are_none(step, steps):
    training, validation, theta = mlp_with_validation()
    with pytest.raises(ValueError, match="the step must be positive and there must be at least one"):
        pseudo_update_influence(training, validation, theta, step=step, steps=steps)


def test_a_pseudo_update_that_explodes_is_refused(fitted_ridge):
    data, _ = fitted_ridge
    with pytest.raises(FloatingPointError, match=r"after the pseudo-update is .* lower the step size"):
        pseudo_update_influence(data.objective, data.validation, randn(8, seed=6), step=1e9, steps=60)


def test_pseudo_update_refuses_a_validation_loss_that_is_not_finite(fitted_ridge):
    data, _ = fitted_ridge
    with pytest.raises(FloatingPointError, match="a directional derivative is nan"):
        pseudo_update_influence(data.objective, nan_validation(data), randn(8, seed=6), step=0.1)


# ------------------------------------------------------------------------------------------- retraining in parameters


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_retrained_without_gives_the_parameters_of_the_closed_form_in_order_and_chunks_of_any_size(
    fitted_ridge, fraction
):
    data, curvature = fitted_ridge
    examples = torch.tensor([9, 3, 69, 9, 0])
    expected = torch.stack([data.optimum(int(example), fraction) for example in examples])
    for chunk in (1, 2, 64):
        answer = retrained_without(curvature, examples, fraction=fraction, tolerance=1e-13, chunk=chunk)
        assert (answer - expected).abs().max() <= 1e-12  # 1e-13/λ
    assert (expected - data.optimum()).abs().max() > 1e-4


def test_retraining_finds_the_minima_of_neighbours_with_the_hessian_of_none_of_them():
    """½(θ − c_k)ᵀ A_k (θ − c_k) has its minimum at c_k whatever metric leads there."""
    known = with_spectrum(torch.linspace(1, 4, 5, dtype=torch.float64))
    matrices = torch.stack([known + 0.3 * with_spectrum(torch.linspace(0, 1, 5).double(), seed=k) for k in range(3)])
    centers = randn(3, 5, seed=8)
    curvature = Curvature(Objective(Quadratic(known)), torch.zeros(5, dtype=torch.float64))
    three = torch.arange(3)

    def objective(theta, numbers):
        center, matrix = numbers[:5], numbers[5:].view(5, 5)
        return 0.5 * (theta - center) @ matrix @ (theta - center)

    varied = torch.cat([centers, matrices.flatten(1)], dim=1)
    for iterations in (50, 2):  # two do not arrive: each is then trained for itself
        settings = {"chunk": 2, "tolerance": 1e-13, "max_iterations": iterations}
        answer = minimise_all(curvature, objective, varied, three, **settings)
        assert (answer - centers).abs().max() <= 1e-12  # 1e-13 over the smallest eigenvalue of A_k, at least 1
    with pytest.raises(FloatingPointError, match="a gradient while retraining is nan"):
        minimise_all(curvature, lambda theta, _: theta.sum() * math.nan, varied, three, chunk=2)
    damped = Curvature(Objective(Quadratic(known)), centers[0], damping=0.1)
    with pytest.raises(ValueError, match=r"damping=0\.1: give the undamped curvature"):
        minimise_all(damped, objective, varied, three, chunk=2)


def test_where_leaving_out_is_no_small_change_training_starts_again():
    """(θ² − 1)²/4 − cθ: for c = −0.6 the well that θ̂ = 1 lay in is gone, and the minimum is on the other side of 0."""

    def well(theta, c=0.0):
        return ((theta**2 - 1) ** 2 / 4 - c * theta).sum()

    pull, examples = torch.tensor([0.3, -0.6, -0.3], dtype=torch.float64), torch.tensor([7, 8, 9])
    known = Objective(SingleLoss(well))
    curvature = Curvature(known, torch.ones(1, dtype=torch.float64))
    ends = minimise_all(curvature, well, pull, examples, chunk=3)[:, 0]
    expected = []
    for c, side in zip(pull.tolist(), (1, -1, 1), strict=True):
        roots = np.roots([1, 0, -1, -c])
        expected.append(side * max(side * roots[abs(roots.imag) < 1e-9].real))
    # the gradient is below 1e-9 and the curvature, 3θ² − 1, above 1 at these three
    np.testing.assert_allclose(ends, expected, rtol=0, atol=1e-9)

    def falling(theta, c):
        return well(theta) - 0.5 * (c < -0.5) * theta.sum() ** 4  # at −0.6: no minimum at 1

    with pytest.raises(RuntimeError, match=r"retraining without example 8: .*; "):  # and a way out
        minimise_all(curvature, falling, pull, examples, chunk=3)


def test_retraining_takes_whole_steps_one_for_a_quadratic_with_its_own_hessian():
    matrix, center = with_spectrum(torch.linspace(1, 4, 5, dtype=torch.float64)), randn(5, seed=8)
    curvature = Curvature(Objective(Quadratic(matrix)), torch.zeros(5, dtype=torch.float64))
    calls = []

    def objective(theta, _):
        calls.append(theta)
        return 0.5 * (theta - center) @ matrix @ (theta - center)

    answer = minimise_all(curvature, objective, torch.zeros(2), torch.arange(2), chunk=2)
    assert len(calls) == 2  # gradients at the start and, after one step, at the end
    torch.testing.assert_close(answer, center.expand(2, -1), rtol=0, atol=1e-13)  # a few roundings


def test_retraining_refuses_a_metric_that_is_not_positive_definite_even_where_nothing_pulls():
    saddle = Curvature(Objective(Quadratic(torch.diag(torch.tensor([1.0, -1.0]).double()))), torch.zeros(2).double())
    with pytest.raises(NegativeCurvatureError):
        minimise_all(saddle, lambda theta, _: 0.0 * theta.sum(), torch.zeros(2), torch.arange(2), chunk=2)
