"""The model as a function of θ: derivatives against other routes to them, and numbers that are not finite refused.

Rounding: the functions here are sums of at most a few hundred float64 terms around 1, so that two routes to the same
derivative differ by some 1e-15; 1e-12 is far above that and far below any wrong term.
"""

import math
import re

import numpy as np
import pytest
import torch
from helpers.analytic import Quadratic, Sine, logistic, logistic_data, mlp, randn, ridge, with_spectrum
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus import curvature, first_layer
from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    SingleLoss,
    binary_cross_entropy,
    check_finite,
    cross_entropy,
    flatten_parameters,
    gradient,
    loss_directional_derivatives,
    per_example_gradients,
)

ROUNDING = 1e-12


def assert_equal_up_to_rounding(actual, expected):
    actual, expected = actual.detach(), expected.detach()
    torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def seeded(*layers):
    """Layers with parameters that no other test has a hand in."""
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed + 100))
    return model


def objective_of(model, *shape, classes=3, n=12):
    labels = torch.arange(n) % classes
    return Objective(ExampleLosses(model, randn(n, *shape, seed=50), labels), l2=0.05)


def two_hidden_layers():
    return objective_of(seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), 4, classes=2)


def linear_alone():
    return objective_of(seeded(nn.Linear(4, 3)), 4)


def frozen_batch_norm():
    model = seeded(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).eval()
    model[1].running_mean.copy_(randn(3, seed=60))
    model[1].running_var.copy_(randn(3, seed=61).exp())
    return objective_of(model, 4)


def convolution():
    return objective_of(seeded(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), 1, 3, 3)


def sequence():
    """A linear layer that acts on each of four vectors of an example."""
    return objective_of(seeded(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)), 4, 4)


def not_sequential():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

        def forward(self, x):
            return 2 * self.inner(x)

    return objective_of(Doubled(), 4)


MODELS = {
    "toy-mlp": lambda: mlp(n=12)[1],
    "logistic-regression": lambda: logistic(n=12),
    "two-hidden-layers": two_hidden_layers,
    "linear-alone": linear_alone,
    "frozen-batch-norm": frozen_batch_norm,
    "convolution": convolution,
    "sequence": sequence,
    "not-sequential": not_sequential,
}
FIRST_LINEAR = {
    "toy-mlp": 1,
    "logistic-regression": 0,
    "two-hidden-layers": 0,
    "linear-alone": 0,
    "frozen-batch-norm": 0,
}
EVERY_MODEL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def somewhere(objective):
    """A θ that is neither the model's own nor stationary."""
    theta = flatten_parameters(objective.losses.model)
    return theta + 0.3 * randn(len(theta), seed=70)


# -------------------------------------------------------------------------------------------- losses and gradients


@EVERY_MODEL
def test_losses_are_those_of_the_modules_own_forward(build):
    losses = build().losses
    theta = flatten_parameters(losses.model)
    outputs = losses.model(losses.inputs)
    if outputs.dim() == 1:
        expected = F.binary_cross_entropy_with_logits(outputs, losses.labels.double(), reduction="none")
    else:
        expected = F.cross_entropy(outputs, losses.labels, reduction="none")
    assert_equal_up_to_rounding(losses(theta), expected)
    assert len(losses) == 12 == len(losses(theta))


def test_index_picks_examples_in_its_order_with_repetitions():
    losses, theta = mlp(n=12)[1].losses, somewhere(mlp(n=12)[1])
    index = torch.tensor([5, 0, 5])
    assert_equal_up_to_rounding(losses(theta, index), losses(theta)[index])


def test_losses_depend_on_theta_and_not_on_the_models_own_parameters():
    model, objective = mlp(n=12)
    theta = somewhere(objective)
    before = objective.losses(theta)
    nn.utils.vector_to_parameters(theta.clone(), model.parameters())
    assert_equal_up_to_rounding(
        before, F.cross_entropy(model(objective.losses.inputs), objective.losses.labels, reduction="none")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    assert torch.equal(objective.losses(theta), before)


def test_unflatten_follows_the_order_of_the_models_parameters():
    model, objective = mlp()
    theta = torch.arange(33, dtype=torch.float64)
    named = objective.losses.unflatten(theta)
    nn.utils.vector_to_parameters(theta.clone(), model.parameters())
    assert list(named) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert torch.equal(named[name], parameter)


def test_flatten_parameters_gives_a_copy():
    model, _ = mlp()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    theta = flatten_parameters(model)
    assert torch.equal(theta, torch.cat([parameter.flatten() for parameter in before]))
    assert not theta.requires_grad
    theta.zero_()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


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


@pytest.mark.parametrize(("inputs", "labels"), [(3, 4), (4, 3), (0, 0)])
def test_inputs_and_labels_that_differ_in_number_or_are_none_are_refused(inputs, labels):
    with pytest.raises(ValueError, match=f"{inputs} inputs and {labels} labels"):
        ExampleLosses(nn.Linear(2, 2), torch.zeros(inputs, 2), torch.zeros(labels, dtype=torch.long))


def test_batch_normalisation_that_mixes_examples_is_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    data = randn(6, 4, seed=0).float(), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"layer '1' mixes the examples of a batch; call model\.eval\(\) first"):
        ExampleLosses(model, *data)
    ExampleLosses(model.eval(), *data)
    model.train()
    model[1].eval()  # the usual way to freeze the averages and train the rest
    ExampleLosses(model, *data)


def test_batch_normalisation_without_running_averages_mixes_examples_even_in_evaluation():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="mixes the examples"):
        ExampleLosses(model, torch.zeros(6, 4), torch.zeros(6, dtype=torch.long))


def test_a_layer_under_two_names_is_refused_and_keeps_its_parameters():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    own = layer.weight
    with pytest.raises(ValueError, match="layers '0' and '2' are one"):
        ExampleLosses(model, torch.zeros(2, 3), torch.tensor([0, 1]))
    assert layer.weight is own


def test_dropout_is_refused_in_training_and_accepted_in_evaluation():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    inputs, labels = torch.zeros(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"layer '1' draws anew at every call; set its p to 0"):
        ExampleLosses(model, inputs, labels)
    ExampleLosses(model.eval(), inputs, labels)


def test_cross_entropies_are_minus_the_log_of_the_probability_of_the_label():
    logits = 3 * randn(5, 3, seed=0)
    labels = torch.tensor([0, 2, 1, 1, 0])
    shares = np.exp(logits.numpy())
    expected = -np.log(shares[np.arange(5), labels.numpy()] / shares.sum(axis=1))
    assert_equal_up_to_rounding(cross_entropy(logits, labels), torch.as_tensor(expected))
    one = np.exp(logits[:, 0].numpy())
    binary = torch.tensor([1, 0, 1, 0, 0])
    expected = np.where(binary.numpy() == 1, -np.log(one / (1 + one)), -np.log(1 / (1 + one)))
    assert_equal_up_to_rounding(binary_cross_entropy(logits[:, 0], binary), torch.as_tensor(expected))


def test_objective_is_the_mean_loss_and_half_lambda_theta_squared():
    data = ridge()
    theta = randn(8, seed=6)
    residuals = (data.x @ theta - data.y).numpy()
    penalty = 0.05 * float(np.sum(theta.numpy() ** 2))
    assert float(data.objective(theta)) == pytest.approx(np.mean(residuals**2) / 2 + penalty, rel=ROUNDING)
    batch = float(data.objective(theta, torch.tensor([3, 9])))  # the penalty is not shared out over a batch
    assert batch == pytest.approx(np.mean(residuals[[3, 9]] ** 2) / 2 + penalty, rel=ROUNDING)
    assert_equal_up_to_rounding(
        gradient(data.objective, theta), data.x.T @ (data.x @ theta - data.y) / 70 + 0.1 * theta
    )


@pytest.mark.parametrize("l2", [-0.1, math.nan, math.inf])
def test_a_regularisation_that_is_negative_or_not_finite_is_refused(l2):
    with pytest.raises(ValueError, match=f"l2={l2} must be a finite number of at least 0"):
        Objective(Sine(3), l2)


@EVERY_MODEL
def test_per_example_gradients_equal_a_loop_of_autograd(build):
    losses = build().losses
    theta = somewhere(build())
    leaf = theta.clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(losses(leaf)[i], leaf)[0] for i in range(len(losses))])
    assert_equal_up_to_rounding(per_example_gradients(losses, theta), expected)


def test_per_example_gradients_of_ridge_are_residual_times_input():
    data, theta = ridge(), randn(8, seed=6)
    assert_equal_up_to_rounding(per_example_gradients(data.objective.losses, theta), data.problem(theta).gradients)


@EVERY_MODEL
def test_directional_derivatives_equal_gradients_times_direction_and_a_central_difference(build):
    losses = build().losses
    theta = somewhere(build())
    direction = randn(len(theta), seed=71)
    derivative = loss_directional_derivatives(losses, theta, direction)
    assert_equal_up_to_rounding(derivative, per_example_gradients(losses, theta) @ direction)
    h = 1e-5  # h² times a third derivative of about 100, and 1e-16/h of rounding: both near 1e-8 or below
    difference = (losses(theta + h * direction) - losses(theta - h * direction)) / (2 * h)
    torch.testing.assert_close(derivative, difference, rtol=0, atol=1e-7)


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
        dense, curvature._hessian_by_products(*curvature._gradient_graph(objective, theta), 5) + shift
    )


@pytest.mark.parametrize("name", MODELS)
def test_dense_takes_the_first_layers_route_exactly_where_there_is_one(name, monkeypatch):
    objective = MODELS[name]()
    taken = []
    for route in ("hessian_by_first_layer", "_hessian_by_products"):
        original = getattr(curvature, route)
        monkeypatch.setattr(
            curvature, route, lambda *args, route=route, original=original: taken.append(route) or original(*args)
        )
    Curvature(objective, somewhere(objective)).dense()
    assert first_layer.first_linear(objective.losses) == FIRST_LINEAR.get(name)
    assert taken == ["hessian_by_first_layer" if name in FIRST_LINEAR else "_hessian_by_products"]


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
    assert curvature.cholesky is first[0]
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


def test_check_finite_names_what_and_the_first_place():
    good = randn(3, seed=0)
    assert check_finite(good, "a thing") is good
    bad = torch.tensor([[1.0, 2.0], [math.inf, math.nan]])
    with pytest.raises(FloatingPointError, match=r"a thing is inf at position 2; check .* lower the step size"):
        check_finite(bad, "a thing")


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
    taken, original = [], curvature._hessian_by_products
    monkeypatch.setattr(curvature, "_hessian_by_products", lambda *args: taken.append(args[2]) or original(*args))
    theta = somewhere(objective)
    assert_equal_up_to_rounding(Curvature(objective, theta).dense(), torch.func.hessian(objective)(theta))
    assert taken == [chunk]


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 32, 33, 34, 64])  # P = 33: with and without a rest
def test_the_columns_at_once_do_not_change_the_dense_hessian(chunk):
    objective = mlp(n=12)[1]
    theta = somewhere(objective)
    dense = curvature._hessian_by_products(*curvature._gradient_graph(objective, theta), chunk)
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


class AddsItsInput(nn.Sequential):
    """Not its layers one after the other."""

    def forward(self, x):
        return x[:, :3] + super().forward(x)


def with_a_hook(model):
    model[0].register_forward_hook(lambda _, __, output: output.sin())
    return model


def with_tied_layers(model):
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    "model",
    [
        AddsItsInput(*seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))),
        with_a_hook(seeded(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))),
        with_tied_layers(seeded(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))),
    ],
    ids=["subclass", "hook", "tied"],
)
def test_dense_takes_no_short_cut_where_a_sequence_is_more_than_its_layers(model):
    objective = objective_of(model, next(model.parameters()).shape[1])
    theta = somewhere(objective)
    assert_equal_up_to_rounding(Curvature(objective, theta).dense(), torch.func.hessian(objective)(theta))


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
        raise curvature.scipy.sparse.linalg.ArpackNoConvergence("No convergence", [], [])

    monkeypatch.setattr(curvature.scipy.sparse.linalg, "eigsh", give_up)
    spectrum = torch.linspace(-1, 2, 25).double()
    found = Curvature(Objective(Quadratic(with_spectrum(spectrum))), randn(25, seed=6))
    assert found.smallest_eigenvalue == pytest.approx(-1, rel=ROUNDING)
    assert found.largest_eigenvalue == pytest.approx(2, rel=ROUNDING)
