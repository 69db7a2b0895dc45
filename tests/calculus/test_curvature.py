"""The Hessian as an operator and as a matrix, against other routes to it, and numbers that are not finite refused."""

import math
import re

import pytest
import scipy.sparse.linalg
import torch
from helpers.analytic import Quadratic, Sine, logistic, logistic_data, mlp, randn, ridge, with_spectrum
from helpers.small_models import EVERY_MODEL, ROUNDING, assert_equal_up_to_rounding, convolution, seeded, somewhere
from torch import nn

from metasp_lite.calculus import curvature
from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    SingleLoss,
    gradient,
    loss_directional_derivatives,
    per_example_gradients,
)


@EVERY_MODEL
def test_no_derivative_touches_the_models_parameters_or_leaves_gradients_there(build):
    objective = build()
    model, theta = objective.losses.model, somewhere(objective)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curvature = Curvature(objective, theta)
    curvature.dense(), curvature @ theta, curvature.on_batch(theta, torch.tensor([0, 1]))
    per_example_gradients(objective.losses, theta)
    loss_directional_derivatives(objective.losses, theta, theta)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------- curvature


@EVERY_MODEL
@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_product_equals_torchs_own_and_the_dense_matrix(build, damping):
    objective = build()
    theta = somewhere(objective)
    curvature = Curvature(objective, theta, damping)
    vector = randn(len(theta), seed=71)
    expected = torch.autograd.functional.hvp(objective, theta, vector)[1] + damping * vector
    assert_equal_up_to_rounding(curvature @ vector, expected)
    assert_equal_up_to_rounding(curvature @ vector, curvature.dense() @ vector)
    unit = torch.zeros_like(theta)
    unit[2] = 1.0
    assert_equal_up_to_rounding(curvature @ unit, curvature.dense()[:, 2])
    assert_equal_up_to_rounding(curvature.gradient, gradient(objective, theta))
    assert not curvature.gradient.requires_grad


@EVERY_MODEL
@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_dense_equals_products_and_torchs_own_hessian(build, damping):
    objective = build()
    theta = somewhere(objective)
    dense = Curvature(objective, theta, damping).dense()
    shift = damping * torch.eye(len(theta), dtype=torch.float64)
    assert_equal_up_to_rounding(dense, torch.func.hessian(objective)(theta) + shift)
    assert_equal_up_to_rounding(
        dense, curvature.hessian_by_products(*curvature.gradient_graph(objective, theta), 5) + shift
    )


def test_dense_of_losses_without_a_model_is_their_hessian():
    theta = torch.tensor([3.5, 4.0, 5.0], dtype=torch.float64)
    assert_equal_up_to_rounding(Curvature(Objective(Sine(3)), theta).dense(), torch.diag(-torch.sin(theta)))


def test_dense_takes_a_scalar_function_as_a_single_loss():
    theta = torch.tensor([3.5, 4.0, 5.0], dtype=torch.float64)
    objective = Objective(SingleLoss(lambda theta: torch.sin(theta).sum()))
    assert_equal_up_to_rounding(Curvature(objective, theta).dense(), torch.diag(-torch.sin(theta)))


def test_product_on_a_batch_is_that_of_the_batchs_own_objective():
    objective = mlp(n=12)[1]
    theta, vector, index = somewhere(objective), randn(33, seed=71), torch.tensor([7, 1, 4])
    inputs, labels = objective.losses.inputs[index], objective.losses.labels[index]
    batch = Objective(ExampleLosses(objective.losses.model, inputs, labels), objective.l2)
    expected = torch.func.hessian(batch)(theta) @ vector + 0.2 * vector
    assert_equal_up_to_rounding(Curvature(objective, theta, damping=0.2).on_batch(vector, index), expected)


def test_products_are_counted_by_the_examples_they_run_over():
    curvature = Curvature(mlp(n=12)[1], somewhere(mlp(n=12)[1]))
    vector = randn(33, seed=71)
    assert curvature.products == 0
    curvature @ vector
    curvature @ vector
    assert curvature.products == 2
    curvature.on_batch(vector, torch.tensor([1, 2, 3]))
    assert curvature.products == 2.25
    curvature.dense()
    assert curvature.products == 2.25


def test_theta_changed_afterwards_does_not_change_the_curvature():
    objective = logistic(n=12)
    theta, vector = randn(4, seed=6), randn(4, seed=7)
    expected = torch.func.hessian(objective)(theta)
    leaf = theta.clone().requires_grad_()
    curvature = Curvature(objective, leaf)
    leaf.data.zero_()
    assert torch.equal(curvature.theta, theta)
    assert not curvature.theta.requires_grad
    assert_equal_up_to_rounding(curvature @ vector, expected @ vector)
    assert_equal_up_to_rounding(curvature.dense(), expected)


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_cholesky_reproduces_the_damped_hessian(damping):
    data = ridge()
    factor = Curvature(data.objective, randn(8, seed=6), damping).cholesky
    assert torch.equal(factor.triu(1), torch.zeros_like(factor))
    assert_equal_up_to_rounding(factor @ factor.T, data.hessian() + damping * torch.eye(8, dtype=torch.float64))


def test_cholesky_and_eigenvalues_are_computed_once(monkeypatch):
    curvature = Curvature(Objective(Quadratic(with_spectrum(torch.linspace(1, 2, 25).double()))), randn(25, seed=6))
    first = curvature.cholesky, curvature.largest_eigenvalue, curvature.smallest_eigenvalue
    spent = curvature.products
    monkeypatch.setattr(Curvature, "dense", lambda self: pytest.fail("computed twice"))
    assert torch.equal(curvature.cholesky, first[0])
    assert (curvature.largest_eigenvalue, curvature.smallest_eigenvalue) == first[1:]
    assert curvature.products == spent


def test_cholesky_of_an_indefinite_hessian_names_the_smallest_eigenvalue_and_the_damping():
    matrix = with_spectrum(torch.tensor([-0.5, 1.0, 2.0], dtype=torch.float64))
    with pytest.raises(NegativeCurvatureError, match=re.escape("met curvature -0.4 with damping 0.1")) as caught:
        _ = Curvature(Objective(Quadratic(matrix)), torch.zeros(3, dtype=torch.float64), damping=0.1).cholesky
    assert caught.value.curvature == pytest.approx(-0.4, rel=ROUNDING)  # below 20 parameters a dense solver finds it
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("damping", [-0.1, math.nan, math.inf])
def test_a_damping_that_is_negative_or_not_finite_is_refused(damping):
    with pytest.raises(ValueError, match=f"damping={damping} must be a finite number of at least 0"):
        Curvature(Objective(Sine(3)), torch.ones(3), damping)


# ------------------------------------------------------------------------------------------------------ not finite


class Powers:
    """n = P losses |θ_i|^p: at 0 finite for p < 2, with a gradient or a second derivative that is not."""

    def __init__(self, power):
        self.power = power

    def __len__(self):
        return 3

    def __call__(self, theta, index=None):
        losses = theta.pow(self.power)
        return losses if index is None else losses[index]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused_where_the_curvature_is_built(value):
    x, y = logistic_data(12)
    x[4, 1] = value
    objective = Objective(ExampleLosses(nn.Sequential(nn.Linear(4, 2).double()), x, y), 0.1)
    with pytest.raises(FloatingPointError, match=r"^the objective is nan"):
        Curvature(objective, randn(10, seed=6))


def test_theta_that_is_not_finite_is_refused_where_the_curvature_is_built():
    with pytest.raises(FloatingPointError, match=r"^the objective is nan"):
        Curvature(logistic(n=12), torch.full((4,), math.nan, dtype=torch.float64))


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is():
    theta = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert Objective(Powers(0.5))(theta).isfinite()
    with pytest.raises(FloatingPointError, match="the gradient of the objective is inf at position 2"):
        Curvature(Objective(Powers(0.5)), theta)


def test_a_second_derivative_that_is_not_finite_is_refused_though_the_gradient_is():
    theta = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    curvature = Curvature(Objective(Powers(1.5)), theta)
    with pytest.raises(FloatingPointError, match="a Hessian-vector product is inf at position 2"):
        curvature @ torch.ones_like(theta)
    with pytest.raises(FloatingPointError, match="a Hessian-vector product of a batch is inf at position 2"):
        curvature.on_batch(torch.ones_like(theta), torch.tensor([0, 2]))
    with pytest.raises(FloatingPointError, match="a row sum of the Hessian is"):
        curvature.dense()


# ------------------------------------------------------------------------------------------ dense by products; errors


@pytest.mark.parametrize(("examples", "chunk"), [(12, 64), (65, 63), (1000, 4), (5000, 1)])
def test_dense_takes_fewer_columns_at_once_the_more_examples_there_are(monkeypatch, examples, chunk):
    """64, and a product of columns and examples of no more than 4096."""
    model = seeded(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 2))
    objective = Objective(ExampleLosses(model, randn(examples, 2, seed=50), torch.arange(examples) % 2), 0.05)
    taken, original = [], curvature.hessian_by_products
    monkeypatch.setattr(curvature, "hessian_by_products", lambda *args: taken.append(args[2]) or original(*args))
    theta = somewhere(objective)
    assert_equal_up_to_rounding(Curvature(objective, theta).dense(), torch.func.hessian(objective)(theta))
    assert taken == [chunk]


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 32, 33, 34, 64])  # P = 33: with and without a rest
def test_the_columns_at_once_do_not_change_the_dense_hessian(chunk):
    objective = mlp(n=12)[1]
    theta = somewhere(objective)
    dense = curvature.hessian_by_products(*curvature.gradient_graph(objective, theta), chunk)
    assert_equal_up_to_rounding(dense, torch.func.hessian(objective)(theta))
    assert not dense.requires_grad


def test_dense_by_products_leaves_the_graph_for_further_products():
    objective = convolution()
    theta = somewhere(objective)
    curvature, vector = Curvature(objective, theta, 0.1), randn(len(somewhere(objective)), seed=71)
    first = curvature.dense()
    assert_equal_up_to_rounding(curvature @ vector, first @ vector)
    assert torch.equal(curvature.dense(), first)
    assert curvature.gradient.norm() > 0


def test_dense_by_products_of_parameters_that_the_loss_is_linear_in_is_their_penalty():
    class Linear:
        def __len__(self):
            return 2

        def __call__(self, theta, index=None):
            losses = torch.stack([theta[0], 3 * theta[1]])
            return losses if index is None else losses[index]

    theta = randn(3, seed=6)
    assert_equal_up_to_rounding(Curvature(Objective(Linear(), 0.3), theta).dense(), 0.3 * torch.eye(3).double())


def test_negative_curvature_says_where_it_was_met():
    plain = NegativeCurvatureError(-0.25, 0.125)
    assert str(plain).startswith("met curvature -0.25 with damping 0.125: the Hessian is not positive definite here;")
    there = NegativeCurvatureError(-0.25, 0.125, "the second stage")
    assert "the Hessian is not positive definite in the second stage; train to a minimum" in str(there)
    assert "raise the damping by more than 0.25" in str(there)
    assert (there.curvature, there.damping) == (plain.curvature, plain.damping) == (-0.25, 0.125)


@pytest.mark.parametrize("seed", range(20))
def test_cholesky_of_a_singular_hessian_says_so(seed):
    """Two columns of the inputs are the same: rounding decides whether the factorisation itself notices."""
    x, labels = logistic_data(30, 4, seed=seed)
    x = torch.cat([x, x[:, :1]], dim=1)
    model = seeded(nn.Linear(5, 1, bias=False), nn.Flatten(0))
    objective = Objective(ExampleLosses(model, x, labels, binary_cross_entropy))
    with pytest.raises(NegativeCurvatureError, match="met curvature 0 with damping 0: the Hessian is singular here; "):
        _ = Curvature(objective, randn(5, seed=seed)).cholesky
    assert Curvature(objective, randn(5, seed=seed), damping=1e-6).cholesky.isfinite().all()


def test_eigenvalues_that_lanczos_cannot_separate_come_from_the_dense_matrix(monkeypatch):
    def give_up(*_, **__):
        raise scipy.sparse.linalg.ArpackNoConvergence("No convergence", [], [])

    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", give_up)
    spectrum = torch.linspace(-1, 2, 25).double()
    found = Curvature(Objective(Quadratic(with_spectrum(spectrum))), randn(25, seed=6))
    assert found.smallest_eigenvalue == pytest.approx(-1, rel=ROUNDING)
    assert found.largest_eigenvalue == pytest.approx(2, rel=ROUNDING)
