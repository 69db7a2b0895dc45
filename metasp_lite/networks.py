"""The networks of the course."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite.doors import Count, Seed, typed


@typed
def toy_mlp(
    inputs: Count = 784, hidden: Count = 8, classes: Count = 10, *, seed: Seed = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Build the one-hidden-layer tanh network of the MetaSP paper's Appendix J (its width is not printed; 8 is ours).

    Takes images or vectors ``(N, …)`` with ``inputs`` numbers each, gives logits ``(N, classes)``.  Its parameters
    depend on ``seed`` alone; the global random state is left as it was.  float64 by default: influence is compared
    with exact answers, and the toy is small.
    """

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes))

    return _drawn(layers, seed, dtype)


@typed
def logistic_regression(inputs: Count, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Build a binary logistic regression without intercept: vectors ``(N, inputs)`` to one logit ``(N,)``.

    Starts at zero, where every class has probability one half.
    """

    def layers() -> nn.Sequential:
        linear = nn.Linear(inputs, 1, bias=False)
        nn.init.zeros_(linear.weight)
        return nn.Sequential(linear, nn.Flatten(start_dim=0))

    return _drawn(layers, 0, dtype)


@typed
def lite_cnn(
    classes: Count = 10,
    *,
    channels: Count = 3,
    widths: Sequence[int] = (16, 32, 64),
    seed: Seed = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Build the small network of the lite profile: images ``(N, channels, H, W)`` to logits ``(N, classes)``.

    For each of ``widths`` a 3×3 convolution, batch-norm, ReLU and a 2×2 maximum; then the mean over what is left of the
    image, and one linear head.  H and W must be at least 2 to the power of the number of widths.

    Raises:
        ValueError: when there is no width, or one below 1.
    """
    if len(widths) == 0 or not all(map(_is_count, widths)):
        raise ValueError(f"widths {tuple(widths)}: give at least one, each of at least one channel")

    def layers() -> nn.Sequential:
        body: list[nn.Module] = []
        for before, width in pairwise((channels, *widths)):
            body += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            body += [nn.MaxPool2d(2)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))

    return _drawn(layers, seed, dtype)


@typed
def resnet18(
    classes: Count = 10, *, channels: Count = 3, width: int = 64, seed: Seed = 0, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Build ResNet-18 for small images (CIFAR): images ``(N, channels, H, W)`` to logits ``(N, classes)``.

    The stem is one 3×3 convolution without pooling instead of 7×7 with; ``width`` is its number of channels, which
    doubles three times (64 is the full network, 11.2 million parameters for 10 classes).  The blocks are torchvision's.

    Raises:
        ValueError: when ``width`` is below 1.
    """
    if width < 1:
        raise ValueError(f"width {width}: give at least one channel")
    from torchvision.models.resnet import BasicBlock  # here, because it takes a second that most uses can save

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


class SmallConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the image's size and multiplies small images by one matrix.

    An even filter reaches one pixel further down and right, as TensorFlow's "same" does.  torch has no fast float64
    convolution on the CPU: with a matrix product, derivatives on images of 14×14 took a quarter of the time, though it
    multiplies by many zeros.  Where the matrix would be large, for a few images, and for any other device or dtype,
    torch's own convolution is taken, the slow twin (``test_small_convolution_equals_torchs``).
    """

    LARGEST = 1 << 20  # entries of the matrix
    bias: Tensor  # never None here

    @typed
    def __init__(self, channels: Count, filters: int, size: int) -> None:
        """Make ``filters`` filters of ``size`` × ``size`` for images of ``channels`` channels, with a bias."""
        super().__init__(channels, filters, size)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        (count, channels, *side), size = images.shape, self.kernel_size[0]
        pixels = math.prod(side)
        slow = images.dtype == torch.float64 and images.device.type == "cpu"
        if not slow or count < 8 or channels * self.out_channels * pixels**2 > self.LARGEST:
            return super().forward(F.pad(images, ((size - 1) // 2, size // 2) * 2))
        filters = F.pad(self.weight.flatten(2), (0, 1))  # a zero at the end, for pixels that do not meet
        meeting = torch.from_numpy(_meeting(*side, size))
        matrix = filters[:, :, meeting]  # (O, C, pixels in, pixels out)
        matrix = matrix.permute(1, 2, 0, 3).reshape(channels * pixels, -1)
        return (images.flatten(1) @ matrix).view(count, -1, *side) + self.bias.view(-1, 1, 1)


@cache
def _meeting(height: int, width: int, size: int) -> np.ndarray:
    """Which entry of a flat ``size`` × ``size`` filter takes a pixel to a pixel; size² where none does.  (HW, HW).

    No tensor: one that is made inside a derivative of torch.func, or in inference mode, cannot be kept for later.
    """
    steps = [np.arange(n)[:, None] - np.arange(n) + (size - 1) // 2 for n in (height, width)]
    rows, columns = steps[0][:, None, :, None], steps[1][None, :, None, :]
    meets = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return np.where(meets, rows * size + columns, size**2).reshape(height * width, -1)


@dataclass(frozen=True)
class Conv:
    """A row of Table A: a convolution of stride 1 that keeps the image's size, and tanh."""

    filters: int
    size: int


@dataclass(frozen=True)
class Pool:
    """A row of Table A: pooling of ``size`` × ``size`` pixels with the stride ``size``."""

    size: int = 2


@dataclass(frozen=True)
class Hidden:
    """A row of Table A: a fully connected layer and tanh."""

    units: int


@dataclass(frozen=True)
class Specification:
    """A network of Table A: the shared embedding, and the hidden layers of a task's head, which its classes follow."""

    embedding: tuple[Conv | Pool, ...]
    head: tuple[Hidden, ...] = ()


# Multi-Stage Influence Function, Table A.  It prints no padding; a convolution here keeps the image's size.
TABLE_A: dict[str, Specification] = {
    "mnist": Specification((Conv(32, 5), Pool(), Conv(64, 5), Pool())),
    "cifar": Specification(
        (Conv(32, 3), Conv(64, 4), Pool(), Conv(128, 2), Pool(), Conv(128, 2), Pool()), (Hidden(1500),)
    ),
}


@typed
def two_stage(
    specification: Specification,
    shape: Sequence[int],
    classes: Count,
    *,
    width: int = 1,
    pooling: type[nn.Module] = nn.MaxPool2d,
    seed: Seed = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Build a network of Table A (``TABLE_A``): images ``(N, *shape)`` to logits ``(N, classes)``.

    Its two parts are ``embedding`` and ``head``, in this order, so that the embedding's parameters W come first in θ.
    ``width`` divides the numbers of filters and hidden units, rounded down.  The table has maxima; with
    ``pooling=nn.AvgPool2d`` the losses are smooth in θ, which second derivatives ask for.

    Raises:
        ValueError: when ``width`` leaves nothing of a layer, or pooling nothing of the image.
    """
    if len(shape) != 3 or not all(map(_is_count, shape)):
        raise ValueError(f"shape={tuple(shape)} must be (C, H, W), each a whole number of at least 1")
    channels, *sides = shape
    counts = [row.filters for row in specification.embedding if isinstance(row, Conv)]
    counts += [row.units for row in specification.head]
    if not 1 <= width <= min(counts):
        raise ValueError(f"width={width} must be between 1 and {min(counts)}, the smallest number that it divides")

    def layers() -> nn.Sequential:
        embedding: list[nn.Module] = []
        before, left = channels, list(sides)
        for row in specification.embedding:
            if isinstance(row, Pool):
                embedding.append(pooling(row.size))
                left = [side // row.size for side in left]
                continue
            after = row.filters // width
            embedding += [SmallConv2d(before, after, row.size), nn.Tanh()]
            before = after
        if min(left) == 0:
            raise ValueError(
                f"nothing is left of images of {sides[0]}×{sides[1]} pixels after pooling; give larger ones"
            )
        features, head = before * math.prod(left), list[nn.Module]()
        for hidden in specification.head:
            head += [nn.Linear(features, hidden.units // width), nn.Tanh()]
            features = hidden.units // width
        parts = {"embedding": [*embedding, nn.Flatten()], "head": [*head, nn.Linear(features, classes)]}
        return nn.Sequential(OrderedDict({name: nn.Sequential(*part) for name, part in parts.items()}))

    return _drawn(layers, seed, dtype)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _drawn(layers: Callable[[], nn.Sequential], seed: Seed, dtype: torch.dtype) -> nn.Sequential:
    """Build a network whose parameters depend on ``seed`` alone, and leave torch's global state as it was.

    Raises:
        ValueError: for a dtype of no fractions, or a network that the memory cannot hold.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} must be a floating-point type, such as torch.float32")
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)  # in another dtype other numbers would be drawn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return layers().to(dtype)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ValueError(f"the memory cannot hold this network ({str(error).splitlines()[0]}); ask for less") from error
    finally:
        torch.set_default_dtype(default)


@typed
def mlp(shape: Sequence[int], classes: Count, *, hidden: Sequence[int] = (100, 100), seed: Seed = 0) -> nn.Sequential:
    """Build a ReLU network with ``hidden`` layers, none if empty: images ``(N, *shape)`` to logits ``(N, classes)``.

    Raises:
        ValueError: when a side of the images or the size of a layer is no whole number of at least 1.
    """
    if not all(map(_is_count, (*shape, *hidden))):
        raise ValueError(f"shape={tuple(shape)} and hidden={tuple(hidden)} must be whole numbers, each at least 1")

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
