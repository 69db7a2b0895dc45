"""Leave-one-out against closed forms and scikit-learn, and as what influence predicts; what retraining refuses."""

import math

import numpy as np
import pytest
import torch
from helpers.analytic import Quadratic, Sine, logistic, logistic_data, randn, with_spectrum
from helpers.influence_truths import closed_form_leave_one_out, nan_validation
from sklearn.linear_model import LogisticRegression

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss, gradient
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import Exact
from metasp_lite.influence.hessian import influence
from metasp_lite.influence.leaving_out import leave_one_out, minimise_all, retrained_without
from metasp_lite.networks import logistic_regression


@pytest.fixture(scope="module")
def fitted_logistic():
    objective = logistic()
    x, y = logistic_data(25, seed=40)
    validation = Objective(ExampleLosses(logistic_regression(4), x, y, binary_cross_entropy))
    theta = minimise(objective, torch.zeros(4, dtype=torch.float64), tolerance=1e-12)
    return objective, validation, Curvature(objective, theta)


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


def test_leave_one_out_refuses_a_validation_loss_that_is_not_finite(fitted_ridge):
    data, curvature = fitted_ridge
    with pytest.raises(FloatingPointError, match="a change of the validation loss is nan"):
        leave_one_out(curvature, nan_validation(data), torch.tensor([0]))


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
