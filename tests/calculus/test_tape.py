"""The tape's derivatives against double backward, what they cost in counted operations, and when it refuses.

Double backward (torch.autograd.functional.jvp) knows no forward mode and no tape.  Rounding: sums of at most some
hundred float64 terms around 1 through a few layers differ by some 1e-15 between two routes; a wrong term would show in
the first digits.
"""

import math

import pytest
import torch
from helpers.analytic import randn
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metasp_lite.calculus.losses import cross_entropy
from metasp_lite.calculus.tape import Tape
from metasp_lite.networks import lite_cnn, resnet18, toy_mlp

ROUNDING = 1e-12


class Residual(nn.Module):
    """x + f(x); in place it adds to what f gave."""

    def __init__(self, *layers, inplace=False):
        super().__init__()
        self.layers, self.inplace = nn.Sequential(*layers), inplace

    def forward(self, x):
        return self.layers(x).add_(x) if self.inplace else x + self.layers(x)


class Standardised(nn.Conv2d):
    """A convolution whose weights are computed from its parameters, and which calls by keyword."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight=weight, bias=self.bias, padding=1)


class Circular(nn.Conv2d):
    """A convolution on a torus."""

    def __init__(self, before, after):
        super().__init__(before, after, 3, padding=1, padding_mode="circular")


class Twice(nn.Module):
    """One linear layer used two times."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Pool(nn.Module):
    """A maximum, called as ``F.max_pool2d`` with what is given."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.args, self.kwargs = args, kwargs

    def forward(self, x):
        y = F.max_pool2d(x, *self.args, **self.kwargs)
        return y[0] if isinstance(y, tuple) else y


def frozen(module, *names):
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)
    return module


IMAGE, SERIES, VOLUME, VECTOR = (2, 6, 6), (2, 9), (2, 4, 4, 4), (5,)
CASES = {
    "linear, tanh": (lambda: [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)], VECTOR),
    "linear on a sequence": (lambda: [nn.Linear(9, 4), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3)], SERIES),
    "one linear layer twice": (lambda: [Twice(5), nn.Tanh(), nn.Linear(5, 3)], VECTOR),
    "layer norm": (lambda: [nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)], VECTOR),
    "conv": (lambda: [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 2, bias=False)], IMAGE),
    "conv, stride": (lambda: [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2)], IMAGE),
    "conv, dilation": (lambda: [nn.Conv2d(2, 3, 2, dilation=2), nn.Tanh(), nn.Conv2d(3, 2, 2, dilation=3)], IMAGE),
    "conv, groups": (lambda: [nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 4, 2, groups=4)], IMAGE),
    "conv, same": (lambda: [nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh(), nn.Conv2d(3, 2, 3, padding="same")], IMAGE),
    "conv, circular": (lambda: [Circular(2, 3), nn.Tanh(), Circular(3, 2)], IMAGE),
    "conv, computed weights": (lambda: [Standardised(2, 3, 3), nn.Tanh(), Standardised(3, 2, 3)], IMAGE),
    "conv 1d": (lambda: [nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Conv1d(3, 2, 2)], SERIES),
    "conv 3d": (lambda: [nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Conv3d(3, 2, 2)], VOLUME),
    "conv transposed": (lambda: [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 2, 2)], IMAGE),
    "relu": (lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2)], IMAGE),
    "relu in place": (lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)], IMAGE),
    "linear, relu in place": (lambda: [nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)], VECTOR),
    "relu in place on a view": (lambda: [nn.Conv2d(2, 3, 3), nn.Flatten(), nn.ReLU(True), nn.Linear(48, 3)], IMAGE),
    "residual": (lambda: [nn.Conv2d(2, 3, 3), Residual(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())], IMAGE),
    "residual in place": (lambda: [nn.Conv2d(2, 3, 3), Residual(nn.Conv2d(3, 3, 1), inplace=True), nn.Tanh()], IMAGE),
    "average pooling": (lambda: [nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Tanh(), nn.Conv2d(3, 2, 2)], IMAGE),
    "maximum": (lambda: [nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2)], IMAGE),
    "maximum, overlapping": (lambda: [nn.Conv2d(2, 3, 3), Pool(3, 2, 1), nn.Conv2d(3, 2, 2)], IMAGE),
    "maximum, ceil and dilation": (lambda: [nn.Conv2d(2, 3, 1), Pool(2, 3, dilation=2, ceil_mode=True)], IMAGE),
    "maximum with its places": (lambda: [nn.Conv2d(2, 3, 3), Pool(2, return_indices=True), nn.Tanh()], IMAGE),
    "maximum of the inputs": (lambda: [nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2)], IMAGE),
    "maximum, relu in place": (lambda: [nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)], IMAGE),
    "adaptive maximum": (lambda: [nn.Conv2d(2, 3, 3), nn.AdaptiveMaxPool2d(2), nn.Conv2d(3, 2, 2)], IMAGE),
    "group norm": (lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)], IMAGE),
    "batch-norm": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)], IMAGE),
    "batch-norm, large eps": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.5), nn.Tanh()], IMAGE),
    "batch-norm, no affine": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Tanh()], IMAGE),
    "batch-norm, no averages": (
        lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False).eval(), nn.Tanh()],
        IMAGE,
    ),
    "batch-norm, plain averages": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.Tanh()], IMAGE),
    "batch-norm, evaluation": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3).eval(), nn.ReLU(inplace=True)], IMAGE),
    "batch-norm of the inputs": (lambda: [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)], IMAGE),
    "batch-norm of vectors": (lambda: [nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)], VECTOR),
    "batch-norm of series": (lambda: [nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Conv1d(3, 2, 3)], SERIES),
    "batch-norm, frozen scale": (
        lambda: [nn.Conv2d(2, 3, 3), frozen(nn.BatchNorm2d(3), "weight"), nn.ReLU(), nn.Conv2d(3, 2, 2)],
        IMAGE,
    ),
    "frozen first layer": (
        lambda: [frozen(nn.Conv2d(2, 3, 3), "weight", "bias"), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2)],
        IMAGE,
    ),
    "frozen weight": (
        lambda: [nn.Conv2d(2, 3, 3), nn.Tanh(), frozen(nn.Conv2d(3, 2, 2), "weight"), nn.Tanh()],
        IMAGE,
    ),
    "frozen bias": (lambda: [nn.Conv2d(2, 3, 3), nn.Tanh(), frozen(nn.Conv2d(3, 2, 2), "bias"), nn.Tanh()], IMAGE),
    "lite CNN": (lambda: [lite_cnn(3, channels=2, widths=(3, 4))], IMAGE),
    "ResNet-18": (lambda: [resnet18(3, channels=2, width=2)], (2, 8, 8)),
}


def function_of(model, inputs):
    """The model's outputs as a function of its trained parameters, and these; its buffers stay as they are."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def function(parameters):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        state = dict(zip(trained, parameters, strict=True)) | buffers
        return functional_call(model, state, (inputs,))

    return function, tuple(parameter.detach().requires_grad_() for parameter in trained.values())


def build(layers):
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for seed, tensor in enumerate([*model.parameters(), *model.buffers()]):
            if tensor.is_floating_point():
                noise = randn(*tensor.shape, seed=seed + 100)
                tensor.copy_(0.5 * noise if tensor.dim() > 1 else 1 + 0.2 * noise)
    return model


def problem(name, seed=0):
    """A function, parameters and a direction."""
    layers, shape = CASES[name]
    function, parameters = function_of(build(layers()), randn(7, *shape, seed=seed))
    direction = tuple(randn(*p.shape, seed=seed + 200 + k) for k, p in enumerate(parameters))
    return function, parameters, direction


def recorded(function, parameters):
    tape = Tape()
    with tape.record():
        value = function(parameters)
    return tape, value


def by_double_backward(function, parameters, direction):
    return torch.autograd.functional.jvp(lambda *p: function(p), parameters, direction)[1]


@pytest.mark.parametrize("name", CASES)
def test_tape_equals_double_backward(name):
    function, parameters, direction = problem(name)
    tape, _ = recorded(function, parameters)
    expected = by_double_backward(function, parameters, direction)
    assert float(expected.abs().max()) > 1e-3  # there is something to see
    torch.testing.assert_close(
        tape.derivative(function, parameters, direction),
        expected,
        rtol=0,
        atol=ROUNDING * float(expected.abs().max()),
    )


@pytest.mark.parametrize("name", ["relu in place", "maximum, relu in place", "batch-norm", "ResNet-18"])
def test_a_tape_serves_for_many_directions(name):
    """The second answer is not disturbed by the first: bit by bit that of a tape of its own."""
    function, parameters, direction = problem(name)
    other = tuple(randn(*p.shape, seed=500 + k) for k, p in enumerate(parameters))
    tape, _ = recorded(function, parameters)
    first = tape.derivative(function, parameters, direction)
    second = tape.derivative(function, parameters, other)
    assert torch.equal(recorded(function, parameters)[0].derivative(function, parameters, other), second)
    assert torch.equal(tape.derivative(function, parameters, direction), first)


@pytest.mark.parametrize("name", CASES)
def test_recording_and_differentiating_change_neither_the_value_nor_its_gradient(name):
    function, parameters, direction = problem(name)
    plain = function(parameters)
    tape, value = recorded(function, parameters)
    tape.derivative(function, parameters, direction)
    assert torch.equal(value, plain)
    slopes = randn(*value.shape, seed=3)
    for actual, expected in zip(
        torch.autograd.grad(value, parameters, slopes), torch.autograd.grad(plain, parameters, slopes), strict=True
    ):
        assert torch.equal(actual, expected)


def test_recording_again_forgets_the_first_function():
    first, second = problem("batch-norm"), problem("maximum")
    tape, _ = recorded(*first[:2])
    with tape.record():
        second[0](second[1])
    expected = by_double_backward(*second)
    torch.testing.assert_close(tape.derivative(*second), expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def test_a_derivative_has_the_dtype_of_its_function():
    """In bfloat16, whose batch statistics torch keeps in single precision; eight bits leave some percent."""
    model = build([nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)])
    inputs = randn(7, *IMAGE, seed=0)
    function, parameters = function_of(model, inputs)
    direction = tuple(randn(*p.shape, seed=200 + k) for k, p in enumerate(parameters))
    expected = by_double_backward(function, parameters, direction)
    for dtype, share in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        function, parameters = function_of(model.to(dtype), inputs.to(dtype))
        tape, _ = recorded(function, parameters)
        actual = tape.derivative(function, parameters, [u.to(dtype) for u in direction])
        assert actual.dtype == dtype
        assert (actual.double() - expected).norm() <= share * expected.norm()


# ------------------------------------------------------------------------------------------------- what it refuses


def linear(parameters):
    return F.linear(INPUTS, parameters[0])


def pooled(parameters):
    return F.max_pool2d(parameters[0] * INPUTS[None, None], 2)


INPUTS, WEIGHTS, DIRECTION = randn(4, 4, seed=0), (randn(4, 4, seed=1),), (randn(4, 4, seed=2),)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (lambda parameters: F.linear(linear(parameters), parameters[0]), "did something new"),  # more
        (lambda parameters: INPUTS @ parameters[0].T, "did less"),  # fewer
        (pooled, "did something new"),  # another
        (lambda parameters: INPUTS, "did less"),  # nothing
        (lambda parameters: linear(WEIGHTS), "did less"),  # the same without θ
    ],
    ids=["more", "fewer", "another", "nothing", "constant"],
)
def test_a_function_that_changed_is_refused(now, message):
    tape, _ = recorded(linear, WEIGHTS)
    with pytest.raises(RuntimeError, match=f"the function {message}.*the same"):
        tape.derivative(now, WEIGHTS, DIRECTION)


def test_a_tape_without_a_record_is_refused():
    with pytest.raises(RuntimeError, match="the function did something new"):
        Tape().derivative(linear, WEIGHTS, DIRECTION)


def test_a_derivative_that_is_not_finite_is_refused():
    tape, _ = recorded(linear, WEIGHTS)
    direction = DIRECTION[0].clone()
    direction[1, 2] = math.inf
    with pytest.raises(FloatingPointError, match=r"a directional derivative is -?inf at position 1"):
        tape.derivative(linear, WEIGHTS, [direction])


# -------------------------------------------------------------------------------------------------- what it costs


def operations(function):
    """Multiplications and additions of convolutions and matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def operations_of_layers(model, inputs):
    """The same of each convolution and linear layer in one forward pass, from the shapes alone, in order."""
    counts, hooks = [], []

    def count(layer, _, output):
        counts.append(2 * output.numel() * layer.weight[0].numel())  # each output: a product and a sum for each weight

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(count))
    model(inputs)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("build_model", [lite_cnn, lambda: resnet18(width=4), lambda: toy_mlp(3 * 16 * 16)])
def test_a_derivative_costs_two_forward_passes_less_the_tangent_that_the_inputs_lack(build_model):
    """ẋ∗W + x∗Ẇ for every layer and no x∗W; the first layer, whose x are the images, has x∗Ẇ alone."""
    model = build_model().float()
    inputs = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    function, parameters = function_of(model, inputs)
    tape, _ = recorded(function, parameters)
    layers = operations_of_layers(model, inputs)
    assert operations(lambda: function(parameters)) == sum(layers)
    assert operations(lambda: tape.derivative(function, parameters, parameters)) == 2 * sum(layers) - layers[0]


def test_a_layer_overwritten_in_place_costs_its_forward_pass_again_and_no_other_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    function, parameters = function_of(model, inputs)
    tape, _ = recorded(function, parameters)
    first, second, third = operations_of_layers(model, inputs)
    again = first
    assert operations(lambda: tape.derivative(function, parameters, parameters)) == again + first + 2 * (second + third)


def test_a_loss_may_be_part_of_the_function():
    """Cross-entropy is nothing the tape knows; torch differentiates it."""
    outputs, parameters, direction = problem("lite CNN")
    labels = torch.arange(7) % 3

    def losses(parameters):
        return cross_entropy(outputs(parameters), labels)

    tape, _ = recorded(losses, parameters)
    expected = by_double_backward(losses, parameters, direction)
    torch.testing.assert_close(
        tape.derivative(losses, parameters, direction), expected, rtol=0, atol=ROUNDING * float(expected.abs().max())
    )
