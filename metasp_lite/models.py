"""The networks of the course."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


def toy_mlp(
    inputs: int = 784, hidden: int = 8, classes: int = 10, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Build the one-hidden-layer tanh network of the MetaSP paper's Appendix J (its width is not printed; 8 is ours).

    Takes images or vectors ``(N, …)`` with ``inputs`` numbers each, gives logits ``(N, classes)``.  Its parameters
    depend on ``seed`` alone; the global random state is left as it was.  float64 by default: influence is compared
    with exact answers, and the toy is small.
    """

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes))

    return _drawn(layers, seed, dtype)


def logistic_regression(inputs: int, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Build a binary logistic regression without intercept: vectors ``(N, inputs)`` to one logit ``(N,)``.

    Starts at zero, where every class has probability one half.
    """
    linear = nn.Linear(inputs, 1, bias=False, dtype=dtype)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(linear, nn.Flatten(start_dim=0))


def lite_cnn(
    classes: int = 10,
    *,
    channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Build the small network of the lite profile: images ``(N, channels, H, W)`` to logits ``(N, classes)``.

    For each of ``widths`` a 3×3 convolution, batch-norm, ReLU and a 2×2 maximum; then the mean over what is left of the
    image, and one linear head.  H and W must be at least 2 to the power of the number of widths.

    Raises:
        ValueError: when there is no width, or one below 1.
    """
    if len(widths) == 0 or min(widths) < 1:
        raise ValueError(f"widths {tuple(widths)}: give at least one, each of at least one channel")

    def layers() -> nn.Sequential:
        body: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            body += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            body += [nn.MaxPool2d(2)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))

    return _drawn(layers, seed, dtype)


def resnet18(
    classes: int = 10, *, channels: int = 3, width: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Build ResNet-18 for small images (CIFAR): images ``(N, channels, H, W)`` to logits ``(N, classes)``.

    The stem is one 3×3 convolution without pooling instead of 7×7 with; ``width`` is its number of channels, which
    doubles three times (64 is the full network, 11.2 million parameters for 10 classes).  The blocks are torchvision's.

    Raises:
        ValueError: when ``width`` is below 1.
    """
    if width < 1:
        raise ValueError(f"width {width}: give at least one channel")

    def layers() -> nn.Sequential:
        stem = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        blocks, before = OrderedDict[str, nn.Module](), width
        for stage in range(4):
            after, stride = width * 2**stage, 1 if stage == 0 else 2
            shortcut = None
            if stage > 0:
                shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            blocks[f"stage{stage + 1}"] = nn.Sequential(
                BasicBlock(before, after, stride, shortcut), BasicBlock(after, after)
            )
            before = after
        head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=nn.Linear(before, classes))
        return nn.Sequential(OrderedDict(stem=nn.Sequential(*stem)) | blocks | head)

    return _drawn(layers, seed, dtype)


def _drawn(layers: Callable[[], nn.Sequential], seed: int, dtype: torch.dtype) -> nn.Sequential:
    """Build a network whose parameters depend on ``seed`` alone, and leave torch's global state as it was."""
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)  # in another dtype other numbers would be drawn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return layers().to(dtype)
    finally:
        torch.set_default_dtype(default)


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (100, 100), seed: int = 0) -> nn.Sequential:
    """Build a ReLU network with ``hidden`` layers, none if empty: images ``(N, *shape)`` to logits ``(N, classes)``."""

    def layers() -> nn.Sequential:
        sizes = (math.prod(shape), *hidden)
        body: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            body += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*body, nn.Linear(sizes[-1], classes))

    return _drawn(layers, seed, torch.float32)


NETWORKS: dict[str, Callable[[Sequence[int], int, int], nn.Sequential]] = {
    "mlp": lambda shape, classes, seed: mlp(shape, classes, seed=seed),
    "lite-cnn": lambda shape, classes, seed: lite_cnn(classes, channels=shape[0], seed=seed),
    "resnet18": lambda shape, classes, seed: resnet18(classes, channels=shape[0], seed=seed),
    "resnet18-20": lambda shape, classes, seed: resnet18(classes, channels=shape[0], width=20, seed=seed),
}
