"""The losses of a model as a function of θ: values and first derivatives against other routes to them, and refusals."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.analytic import Sine, logistic, mlp, randn, ridge
from helpers.small_models import EVERY_MODEL, ROUNDING, assert_equal_up_to_rounding, seeded, somewhere
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus import curvature
from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    SingleLoss,
    cross_entropy,
    gradient,
    loss_directional_derivatives,
    losses_at,
    per_example_gradients,
)
from metasp_lite.calculus.parameters import flatten_parameters


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


def test_a_single_loss_is_a_scalar_function_as_a_vector_of_one():
    objective, theta = logistic(n=12), randn(4, seed=6)
    single = SingleLoss(objective)
    assert len(single) == 1
    assert torch.equal(single(theta), objective(theta)[None])
    assert torch.equal(single(theta, torch.tensor([0, 0])), objective(theta).expand(2))
    assert_equal_up_to_rounding(per_example_gradients(single, theta), gradient(objective, theta)[None])
    assert_equal_up_to_rounding(Objective(single, 0.3)(theta), objective(theta) + 0.15 * theta.dot(theta))


def test_losses_at_given_parameters_are_those_of_the_model_that_has_them_and_its_buffers_do_not_move():
    model = seeded(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    inputs, labels = randn(6, 4, seed=0), torch.arange(6) % 3
    weight, before = randn(3, 4, seed=1), copy.deepcopy(model.state_dict())
    losses, buffers = losses_at(model, {"0.weight": weight}, (inputs, labels))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[0].weight.data = weight
    assert torch.equal(losses, cross_entropy(model(inputs), labels))  # in training mode, which moves the averages
    assert set(buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


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


def test_check_finite_names_what_and_the_first_place():
    good = randn(3, seed=0)
    assert check_finite(good, "a thing") is good
    bad = torch.tensor([[1.0, 2.0], [math.inf, math.nan]])
    with pytest.raises(FloatingPointError, match=r"a thing is inf at position 2; check .* lower the step size"):
        check_finite(bad, "a thing")


def test_losses_without_a_length_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"a function, which does not say how many .* SingleLoss\(function\)"):
        curvature.Curvature(Objective(lambda theta, index=None: theta.square()), torch.zeros(2).double())
