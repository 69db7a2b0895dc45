"""Models: the networks are the ones the formulas mean, and building one disturbs nothing."""

import math

import numpy as np
import pytest
import torch
import torchvision
from analytic import randn
from torch import nn
from torch.nn import functional as F

from metasp_lite.functional import binary_cross_entropy, flatten_parameters
from metasp_lite.models import NETWORKS, lite_cnn, logistic_regression, mlp, resnet18, toy_mlp

DRAWN = {
    "toy_mlp": lambda **options: toy_mlp(6, 3, 2, **options),
    "lite_cnn": lambda **options: lite_cnn(3, widths=(2, 3), **options),
    "resnet18": lambda **options: resnet18(3, width=2, **options),
    "mlp": lambda **options: mlp((1, 2, 3), 4, hidden=(5,), **options),
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
