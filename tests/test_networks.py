"""Models: the networks are the ones the formulas mean, and building one disturbs nothing."""

import math
import warnings

import numpy as np
import pytest
import torch
import torchvision
from helpers.analytic import randn
from torch import nn
from torch.nn import functional as F

from metasp_lite import networks
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import ExampleLosses, Objective
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.networks import (
    NETWORKS,
    TABLE_A,
    Conv,
    Hidden,
    Pool,
    SmallConv2d,
    Specification,
    lite_cnn,
    logistic_regression,
    mlp,
    resnet18,
    toy_mlp,
    two_stage,
)

DRAWN = {
    "toy_mlp": lambda **options: toy_mlp(6, 3, 2, **options),
    "lite_cnn": lambda **options: lite_cnn(3, widths=(2, 3), **options),
    "resnet18": lambda **options: resnet18(3, width=2, **options),
    "mlp": lambda **options: mlp((1, 2, 3), 4, hidden=(5,), **options),
    "two_stage-mnist": lambda **options: two_stage(TABLE_A["mnist"], (1, 5, 4), 3, width=16, **options),
    "two_stage-cifar": lambda **options: two_stage(TABLE_A["cifar"], (3, 8, 9), 3, width=16, **options),
}
EACH = pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in DRAWN.items()])


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def test_toy_mlp_is_the_appendix_network():
    model = toy_mlp()
    assert len(flatten_parameters(model)) == 784 * 8 + 8 + 8 * 10 + 10
    images = randn(5, 1, 28, 28, seed=0)
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in model.parameters())
    expected = np.tanh(images.flatten(1).numpy() @ w1.T + b1) @ w2.T + b2
    # Sums of 784 products in another order: about 784 rounding errors of 1e-16.
    torch.testing.assert_close(model(images).detach(), torch.as_tensor(expected), rtol=0, atol=1e-13)


@EACH
def test_a_drawn_model_depends_on_its_seed_alone(build):
    torch.manual_seed(1)
    first = flatten_parameters(build(seed=5))
    torch.manual_seed(2)
    assert torch.equal(flatten_parameters(build(seed=5)), first)
    assert not torch.equal(flatten_parameters(build(seed=6)), first)


@EACH
def test_drawing_a_model_leaves_the_global_random_state_as_it_was(build):
    before = torch.get_rng_state()
    build()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_have_the_dtype_that_was_asked_for(dtype):
    assert flatten_parameters(toy_mlp(6, 3, 2, dtype=dtype)).dtype == dtype
    assert flatten_parameters(logistic_regression(3, dtype=dtype)).dtype == dtype
    assert flatten_parameters(toy_mlp(6, 3, 2)).dtype == flatten_parameters(logistic_regression(3)).dtype
    assert flatten_parameters(toy_mlp(6, 3, 2)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["lite_cnn", "resnet18"])
def test_networks_for_images_have_one_dtype_single_unless_asked_otherwise(name, dtype):
    state = DRAWN[name](dtype=dtype).state_dict()
    counters = {name for name in state if name.endswith("num_batches_tracked")}  # whole numbers
    assert {value.dtype for name, value in state.items() if name not in counters} == {dtype}
    assert flatten_parameters(DRAWN[name]()).dtype == torch.float32


def test_logistic_regression_is_one_inner_product_without_intercept():
    model, x = logistic_regression(3), randn(7, 3, seed=0)
    assert len(flatten_parameters(model)) == 3
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    # Three products and two sums of numbers around 1: a few rounding errors of 1e-16.
    torch.testing.assert_close(model(x).detach(), x[:, 0] - 2 * x[:, 1] + x[:, 2] / 2, rtol=0, atol=1e-14)


def test_logistic_regression_starts_undecided_even_on_one_example():
    logits = logistic_regression(3)(randn(1, 3, seed=0))
    assert logits.shape == (1,)
    assert binary_cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(math.log(2), rel=1e-15)


def test_lite_cnn_is_convolution_batch_norm_relu_and_maximum_then_the_mean_and_a_linear_head():
    model = lite_cnn(4, channels=2, widths=(3, 5), dtype=torch.float64)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):  # batch-norm starts as 1 and 0, which would hide it
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    weights = [parameter.detach() for parameter in model.parameters()]
    images = randn(6, 2, 9, 12, seed=50)
    hidden, means, variances = images, [], []
    for kernel, scale, shift in (weights[:3], weights[3:6]):
        hidden = F.conv2d(F.pad(hidden, (1, 1, 1, 1)), kernel)
        means.append(hidden.mean(dim=(0, 2, 3), keepdim=True))
        variances.append(hidden.var(dim=(0, 2, 3), keepdim=True, unbiased=False))
        hidden = (hidden - means[-1]) / (variances[-1] + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        height, width = hidden.shape[2] // 2, hidden.shape[3] // 2  # an odd row is left out
        blocks = hidden.clamp(min=0)[:, :, : 2 * height, : 2 * width]
        hidden = blocks.reshape(*blocks.shape[:2], height, 2, width, 2).amax(dim=(3, 5))
    expected = hidden.mean(dim=(2, 3)) @ weights[6].T + weights[7]
    # Sums of at most some hundred products around 1, in another order: 1e-12 is a thousand times their rounding.
    torch.testing.assert_close(model(images).detach(), expected, rtol=0, atol=1e-12)
    # The running averages are a tenth of the way from 0 and 1 to this batch's.
    for norm, mean in zip([model[1], model[5]], means, strict=True):
        torch.testing.assert_close(norm.running_mean, 0.1 * mean.flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("widths", [(16, 32, 64), (4,), (3, 2)])
def test_lite_cnn_has_the_parameters_that_its_layers_need(channels, classes, widths):
    model = lite_cnn(classes, channels=channels, widths=widths)
    kernels = sum(9 * before * after for before, after in zip((channels, *widths), widths, strict=False))
    assert len(flatten_parameters(model)) == kernels + 2 * sum(widths) + widths[-1] * classes + classes
    assert count(model, nn.BatchNorm2d) == len(widths)


def resnet18_parameters(classes, channels, width):
    """Counted from the paper's table: 3×3 kernels, two pairs a stage, and a 1×1 shortcut where the width doubles."""
    stem = 9 * channels * width + 2 * width
    first = 4 * (9 * width**2 + 2 * width)
    later = 0
    for wide in (2 * width, 4 * width, 8 * width):
        later += 9 * wide * wide // 2 + 3 * 9 * wide**2 + 4 * 2 * wide  # one kernel from half as many channels
        later += wide * wide // 2 + 2 * wide  # the shortcut
    return stem + first + later + 8 * width * classes + classes


def test_resnet18_at_full_width_has_the_well_known_number_of_parameters():
    assert resnet18_parameters(10, 3, 64) == 11_173_962  # ResNet-18 for CIFAR-10, as many code bases print it
    assert len(flatten_parameters(resnet18())) == 11_173_962


@pytest.mark.parametrize(("classes", "channels", "width"), [(10, 3, 20), (100, 3, 8), (10, 1, 4), (2, 1, 1)])
def test_resnet18_has_the_parameters_that_its_layers_need(classes, channels, width):
    model = resnet18(classes, channels=channels, width=width)
    assert len(flatten_parameters(model)) == resnet18_parameters(classes, channels, width)


def test_resnet18_has_eighteen_layers_beside_its_shortcuts():
    model = resnet18(width=1)
    kernels = [module.kernel_size for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert kernels.count((3, 3)) + count(model, nn.Linear) == 18
    assert kernels.count((1, 1)) == 3
    assert count(model, nn.BatchNorm2d) == 20
    assert count(model, nn.MaxPool2d) == 0


@pytest.mark.parametrize("training", [True, False])
def test_resnet18_is_torchvisions_with_a_small_stem_and_no_pooling(training):
    with torch.random.fork_rng(devices=[]):
        theirs = torchvision.models.resnet18(num_classes=10)
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False), nn.Identity()
    theirs.double().train(training)
    ours = resnet18(seed=3, dtype=torch.float64)
    with torch.no_grad():
        for seed, module in enumerate(ours.modules()):  # batch-norm starts as 1 and 0, which would hide a wrong place
            if isinstance(module, nn.BatchNorm2d):
                scale, shift, mean, variance = 0.3 * randn(4, module.num_features, seed=seed)
                module.weight.copy_(1 + scale)
                module.bias.copy_(shift)
                module.running_mean.copy_(mean)
                module.running_var.copy_(variance.exp())
    names = {"stem.0": "conv1", "stem.1": "bn1", "head": "fc"} | {f"stage{k}": f"layer{k}" for k in range(1, 5)}

    def renamed(key):
        return next(new + key.removeprefix(old) for old, new in names.items() if key.startswith(f"{old}."))

    theirs.load_state_dict({renamed(key): value for key, value in ours.state_dict().items()})
    ours.train(training)
    images = randn(2, 3, 10, 10, seed=0)
    with torch.no_grad():
        # The same operations in the same order: equal, but for the order of sums inside a convolution.
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)
    moved = {renamed(key): value for key, value in ours.state_dict().items()}  # running averages move in training only
    torch.testing.assert_close(moved, dict(theirs.state_dict()), rtol=1e-12, atol=1e-12)


SIZES = pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 16, 16), (3, 33, 17), (3, 9, 8), (2, 8, 15)]
)


@SIZES
def test_networks_for_images_give_one_number_for_each_class(channels, height, width):
    images = randn(2, channels, height, width, seed=0).float()
    for model in (lite_cnn(7, channels=channels), resnet18(7, channels=channels, width=2)):
        logits = model(images)
        assert logits.shape == (2, 7)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


def test_resnet18_halves_the_image_three_times_and_not_before():
    model, shapes = resnet18(width=2), []
    for name in ("stem", "stage1", "stage2", "stage3", "stage4"):
        model.get_submodule(name).register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape[1:])))
    model(randn(2, 3, 32, 24, seed=0).float())
    assert shapes == [(2, 32, 24), (2, 32, 24), (4, 16, 12), (8, 8, 6), (16, 4, 3)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_lite_cnn_takes_images_from_two_to_the_number_of_its_widths(depth):
    model, least = lite_cnn(widths=(2,) * depth), 2**depth
    assert model(torch.zeros(2, 3, least, least)).shape == (2, 10)
    with pytest.raises(RuntimeError, match="too small"):  # torch's own words
        model(torch.zeros(2, 3, least, least - 1))


@pytest.mark.parametrize("model", [lite_cnn(4, widths=(8, 16)), resnet18(4, width=4)], ids=["lite_cnn", "resnet18"])
def test_a_few_steps_of_sgd_fit_a_small_batch(model):
    images, labels = randn(16, 3, 8, 8, seed=0).float(), torch.arange(16) % 4
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(25):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(4), abs=1.0)  # it starts as a guess among four
    assert losses[-1] < losses[0] / 2  # noise with labels: only a network that learns its images gets there
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("widths", [(), (0,), (4, 0), (4, -1)])
def test_lite_cnn_without_channels_is_refused(widths):
    with pytest.raises(ValueError, match="give at least one, each of at least one channel"):
        lite_cnn(widths=widths)


@pytest.mark.parametrize("width", [0, -1])
def test_resnet18_without_channels_is_refused(width):
    with pytest.raises(ValueError, match=f"width {width}: give at least one channel"):
        resnet18(width=width)


def test_mlp_is_linear_layers_with_relu_between_them():
    model = mlp((2, 3, 4), 5, hidden=(7, 6), seed=1)
    images = randn(8, 2, 3, 4, seed=0).float()
    w1, b1, w2, b2, w3, b3 = (parameter.detach().double().numpy() for parameter in model.parameters())
    hidden = np.maximum(images.flatten(1).double().numpy() @ w1.T + b1, 0)
    expected = np.maximum(hidden @ w2.T + b2, 0) @ w3.T + b3
    assert [w.shape for w in (w1, w2, w3)] == [(7, 24), (6, 7), (5, 6)]
    # Sums of 24 float32 products of numbers around 1: a few 1e-7 each.
    torch.testing.assert_close(model(images).detach().double(), torch.as_tensor(expected), rtol=0, atol=1e-5)


def test_mlp_without_hidden_layers_is_linear():
    model = mlp((2, 3, 4), 5, hidden=(), seed=1)
    weight, bias = model.parameters()
    images = randn(8, 2, 3, 4, seed=0).float()
    torch.testing.assert_close(model(images), images.flatten(1) @ weight.T + bias)


def test_mlp_of_the_lite_stream_has_two_layers_of_100():
    sizes = 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    assert (
        len(flatten_parameters(mlp((1, 28, 28), 10)))
        == len(flatten_parameters(NETWORKS["mlp"]((1, 28, 28), 10, 0)))
        == sizes
    )


NAMED = {  # by hand: classes, image shape and seed to the network
    "mlp": lambda shape, classes, seed: mlp(shape, classes, hidden=(100, 100), seed=seed),
    "lite-cnn": lambda shape, classes, seed: lite_cnn(classes, channels=shape[0], widths=(16, 32, 64), seed=seed),
    "resnet18": lambda shape, classes, seed: resnet18(classes, channels=shape[0], width=64, seed=seed),
    "resnet18-20": lambda shape, classes, seed: resnet18(classes, channels=shape[0], width=20, seed=seed),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24)], ids=str)
def test_a_named_network_takes_the_images_and_ends_in_one_linear_head_over_features(name, shape):
    model = NETWORKS[name](shape, 7, 3)
    assert torch.equal(flatten_parameters(model), flatten_parameters(NAMED[name](shape, 7, 3)))
    assert isinstance(model[-1], nn.Linear)  # rehearsal selection takes what it sees as features
    images = torch.zeros(2, *shape)
    assert model(images).shape == (2, 7)
    assert model[:-1](images).shape == (2, model[-1].in_features)


# ------------------------------------------------------------------------------------------ small convolutions


@pytest.fixture
def torchs_own(monkeypatch):
    """The batches that torch's own convolution was called for."""
    calls, original = [], nn.Conv2d._conv_forward

    def recorded(self, images, *arguments):
        calls.append(len(images))
        return original(self, images, *arguments)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", recorded)
    return calls


def small_convolution(channels=2, filters=3, size=3, dtype=torch.float64):
    layer = SmallConv2d(channels, filters, size).to(dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    return layer


# Sums of at most 75 products around 1, in another order: 1e-12 is a thousand times their rounding.
def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 7), (1, 5), (2, 3)])
def test_small_convolution_equals_torchs(torchs_own, size, height, width):
    layer, images = small_convolution(size=size), randn(9, 2, height, width, seed=5)
    answer = layer(images)
    assert torchs_own == []
    expected = F.conv2d(images, layer.weight, layer.bias, padding=size // 2)
    assert answer.shape == expected.shape == (9, 3, height, width)
    assert_close(answer.detach(), expected.detach())


def small_and_torchs():
    """The same scalar of weight, bias and images by both routes, and a place."""
    layer, images = small_convolution(size=5), randn(8, 2, 4, 6, seed=5)
    place = (layer.weight.detach(), layer.bias.detach(), images)

    def by_layer(weight, bias, images):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (images,))

    def by_torch(weight, bias, images):
        return F.conv2d(images, weight, bias, padding=2)

    return by_layer, by_torch, place


def test_a_small_convolution_has_torchs_first_and_second_derivatives(torchs_own):
    """Backwards, forwards, and one over the other, with respect to filters, bias and images."""
    by_layer, by_torch, place = small_and_torchs()
    directions = tuple(randn(*part.shape, seed=seed) for seed, part in enumerate(place, start=20))

    def scalar(route):
        return lambda *place: torch.tanh(route(*place)).pow(2).sum()

    def derivatives(route):
        everything = (0, 1, 2)
        slopes = torch.func.grad(scalar(route), everything)(*place)
        forwards = torch.func.jvp(route, place, directions)[1]
        products = torch.func.jvp(torch.func.grad(scalar(route), everything), place, directions)[1]
        leaves = [part.clone().requires_grad_() for part in place]
        first = torch.autograd.grad(scalar(route)(*leaves), leaves, create_graph=True)
        twice = torch.autograd.grad(first, leaves, directions)
        return [*slopes, forwards, *products, *twice]

    answers = derivatives(by_layer)
    assert torchs_own == []
    for answer, expected in zip(answers, derivatives(by_torch), strict=True):
        assert_close(answer, expected)


def test_a_small_convolution_is_torchs_for_many_filters_at_once(torchs_own):
    by_layer, by_torch, (weight, bias, images) = small_and_torchs()
    weights = torch.stack([weight, 2 * weight, randn(*weight.shape, seed=30)])
    every = torch.vmap(lambda weight: by_layer(weight, bias, images))(weights)
    slopes = torch.vmap(torch.func.grad(lambda weight: by_layer(weight, bias, images).pow(3).sum()))(weights)
    assert torchs_own == []
    for k in range(3):
        assert_close(every[k], by_torch(weights[k], bias, images))
        assert_close(slopes[k], torch.func.grad(lambda weight: by_torch(weight, bias, images).pow(3).sum())(weights[k]))


@pytest.mark.parametrize(
    "first",
    [
        lambda one, weight: torch.func.hessian(one)(weight),
        lambda one, weight: torch.func.jvp(one, (weight,), (weight,)),
        lambda one, weight: torch.vmap(torch.func.grad(one))(weight[None]),
        lambda one, weight: torch.inference_mode()(one)(weight),
    ],
    ids=["hessian", "jvp", "vmap of grad", "inference mode"],
)
def test_where_a_small_convolution_is_first_used_does_not_matter(first):
    """What it keeps for images of this size must not belong to the derivative that asked for it first."""
    by_layer, by_torch, (weight, bias, images) = small_and_torchs()
    networks._meeting.cache_clear()

    def one(weight):
        return by_layer(weight, bias, images).pow(2).sum()

    first(one, weight)
    expected = torch.func.hessian(lambda weight: by_torch(weight, bias, images).pow(2).sum())(weight)
    assert_close(torch.func.hessian(one)(weight), expected)
    leaf = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(one(leaf), leaf)
    assert_close(slope, torch.func.grad(lambda weight: by_torch(weight, bias, images).pow(2).sum())(weight))


@pytest.mark.parametrize(
    ("count", "dtype", "shape", "own"),
    [
        (8, torch.float64, (6, 6), False),
        (7, torch.float64, (6, 6), True),  # too few images to pay for the matrix
        (8, torch.float32, (6, 6), True),  # torch is fast there
        (8, torch.float64, (19, 22), False),  # a matrix of 2·3·418² entries, below 2²⁰ = 6·418.05²
        (8, torch.float64, (1, 419), True),  # and one above
    ],
)
def test_a_small_convolution_takes_torchs_own_where_that_is_better(torchs_own, count, dtype, shape, own):
    layer = small_convolution(dtype=dtype)
    images = randn(count, 2, *shape, seed=5).to(dtype)
    answer = layer(images).detach()
    assert torchs_own == ([count] if own else [])
    expected = F.conv2d(images, layer.weight, layer.bias, padding=1).detach()
    assert answer.dtype == dtype
    if own:
        assert torch.equal(answer, expected)
    else:
        assert_close(answer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 4])
def test_an_even_filter_reaches_further_down_and_right(size, dtype):
    """As "same" padding does in TensorFlow and in torch, by either route."""
    layer, images = SmallConv2d(2, 3, size).to(dtype), randn(9, 2, 6, 5, seed=4).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own "same" copies the images for even sizes, and says so
        expected = F.conv2d(images, layer.weight, layer.bias, padding="same")
    # sums of up to 32 products of numbers around 1
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)


# ------------------------------------------------------------------------------------- the two-stage paper's Table A

PRINTED = {  # CONV filters × size with tanh, POOL of 2, then the hidden FC of the head
    "mnist": ([(32, 5), "pool", (64, 5), "pool"], []),
    "cifar": ([(32, 3), (64, 4), "pool", (128, 2), "pool", (128, 2), "pool"], [1500]),
}
EVERY_TABLE = pytest.mark.parametrize("name", PRINTED)


@EVERY_TABLE
@pytest.mark.parametrize("width", [16, 10])  # 10 does not divide
@pytest.mark.parametrize("pooling", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_stage_is_the_printed_rows_one_after_the_other(name, width, pooling, dtype):
    rows, hidden = PRINTED[name]
    model = two_stage(TABLE_A[name], (2, 9, 12), 5, width=width, pooling=pooling, seed=3, dtype=dtype)
    assert [part for part, _ in model.named_children()] == ["embedding", "head"]
    parameters = iter([parameter.detach().double() for parameter in model.parameters()])
    images = randn(8, 2, 9, 12, seed=4).to(dtype)
    x = images.double()
    for row in rows:
        if row == "pool":
            height, wide = x.shape[2] // 2, x.shape[3] // 2  # an odd row is left out
            blocks = x[:, :, : 2 * height, : 2 * wide].reshape(8, -1, height, 2, wide, 2)
            x = blocks.amax(dim=(3, 5)) if pooling is nn.MaxPool2d else blocks.mean(dim=(3, 5))
            continue
        filters, size = row
        weight, bias = next(parameters), next(parameters)
        assert weight.shape == (filters // width, x.shape[1], size, size)
        before = (size - 1) // 2  # the same size, and the odd zero at the end
        x = torch.tanh(F.conv2d(F.pad(x, (before, size - 1 - before) * 2), weight, bias))
    features = x.flatten(1)
    # Sums of a few hundred products around 1 in another order, in the precision of the network.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(model.embedding(images).detach().double(), features, rtol=0, atol=tolerance)
    for units in hidden:
        weight, bias = next(parameters), next(parameters)
        assert len(weight) == units // width
        features = torch.tanh(features @ weight.T + bias)
    weight, bias = next(parameters), next(parameters)
    answer = model(images).detach()
    assert answer.dtype == dtype
    assert answer.shape == (8, 5)
    torch.testing.assert_close(answer.double(), features @ weight.T + bias, rtol=0, atol=tolerance)
    assert next(parameters, None) is None
    assert count(model, pooling) == rows.count("pool")


@pytest.mark.parametrize(
    ("name", "shape", "classes", "embedding", "head"),
    [
        # filters·(channels·size² + 1) for each row; then (pixels·filters + 1)·classes
        ("mnist", (1, 28, 28), 6, 32 * 26 + 64 * (32 * 25 + 1), (7 * 7 * 64 + 1) * 6),
        ("mnist", (3, 32, 32), 10, 32 * 76 + 64 * (32 * 25 + 1), (8 * 8 * 64 + 1) * 10),
        (
            "cifar",
            (3, 32, 32),
            8,
            32 * 28 + 64 * (32 * 16 + 1) + 128 * (64 * 4 + 1) + 128 * (128 * 4 + 1),
            (4 * 4 * 128 + 1) * 1500 + 1501 * 8,
        ),
        (
            "cifar",
            (1, 28, 28),  # 28, 14, 7, 3
            2,
            32 * 10 + 64 * (32 * 16 + 1) + 128 * (64 * 4 + 1) + 128 * (128 * 4 + 1),
            (3 * 3 * 128 + 1) * 1500 + 1501 * 2,
        ),
    ],
)
def test_table_a_at_full_width_has_the_parameters_of_its_rows(name, shape, classes, embedding, head):
    model = two_stage(TABLE_A[name], shape, classes, dtype=torch.float32)
    assert len(flatten_parameters(model.embedding)) == embedding
    assert len(flatten_parameters(model.head)) == head
    assert model(torch.zeros(2, *shape)).shape == (2, classes)


@EVERY_TABLE
def test_the_width_divides_every_layer_and_rounds_down(name):
    rows, hidden = PRINTED[name]
    model = two_stage(TABLE_A[name], (1, 16, 16), 3, width=32)  # the smallest layer has 32
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [row[0] // 32 for row in rows if row != "pool"]
    linear = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear == [*(units // 32 for units in hidden), 3]  # 1500 / 32 = 46.9
    for width in (33, 0, -1):
        with pytest.raises(ValueError, match=f"width={width} must be between 1 and 32, the smallest number"):
            two_stage(TABLE_A[name], (1, 16, 16), 3, width=width)


def test_the_hidden_units_bound_the_width_too():
    narrow = Specification((Conv(8, 3),), (Hidden(4),))
    assert two_stage(narrow, (1, 4, 4), 2, width=4).head[0].out_features == 1
    with pytest.raises(ValueError, match="between 1 and 4"):
        two_stage(narrow, (1, 4, 4), 2, width=5)


@pytest.mark.parametrize(("name", "least"), [("mnist", 4), ("cifar", 8)])
def test_two_stage_takes_images_that_pooling_leaves_something_of(name, least):
    model = two_stage(TABLE_A[name], (1, least, least + 1), 3, width=32)
    assert model(torch.zeros(2, 1, least, least + 1, dtype=torch.float64)).shape == (2, 3)
    for shape in ((1, least - 1, least), (1, least, least - 1)):
        with pytest.raises(ValueError, match=f"nothing is left of images of {shape[1]}×{shape[2]} pixels"):
            two_stage(TABLE_A[name], shape, 3, width=32)


def test_pooling_has_the_size_and_the_stride_of_its_row():
    specification = Specification((Conv(2, 3), Pool(3)))
    model = two_stage(specification, (1, 7, 6), 2)
    assert model.embedding(torch.zeros(1, 1, 7, 6, dtype=torch.float64)).shape == (1, 2 * 2 * 2)


@EVERY_TABLE
@pytest.mark.parametrize("pooling", [nn.MaxPool2d, nn.AvgPool2d])
def test_the_dense_hessian_of_table_a_is_torchs_own(name, pooling):
    """Through maxima and small convolutions, for all columns of a chunk at once, without a warning."""
    model = two_stage(TABLE_A[name], (1, 8, 8), 2, width=32, pooling=pooling)
    objective = Objective(ExampleLosses(model, randn(9, 1, 8, 8, seed=1), torch.arange(9) % 2), 0.1)
    theta = flatten_parameters(model)
    expected = torch.func.hessian(objective)(theta)
    assert_close(Curvature(objective, theta).dense(), expected)
    assert expected.abs().max() > 0.01
