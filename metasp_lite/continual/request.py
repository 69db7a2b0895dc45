"""Whether a run can be trained at all: asked before the first step, and before anything is written."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.methods.base import MemorySettings
from metasp_lite.continual.run import Run
from metasp_lite.continual.streams import Stream
from metasp_lite.memory import available_bytes
from metasp_lite.networks import NETWORKS

_JOINED = ("er", "hal", "gss")  # methods that train on new and remembered examples together, from the second step on
_ON_MEMORY = ("gem", "a-gem", "gdumb", "hal")  # … also on remembered examples alone
_FROM_MEMORY = ("memory_batch", "candidates", "compared", "validation")  # settings: so many stored examples are drawn
_LARGEST_SIDE = 128  # of an image, up to which a size that a network takes is looked for
SINGLE = "Expected more than 1 value per channel"  # how torch's batch-norm refuses one value


def check(run: Run) -> None:
    """Ask what can be told before the images are read.

    Raises:
        ValueError: when the network cannot take images of the size that is asked for, or the machine cannot hold one;
            when more are to be drawn from the memory than it holds; when ``compile`` is asked for where nothing can be
            compiled.
    """
    if isinstance(run.settings, MemorySettings):
        _require_within(run.settings, run.settings.memory, f"memory={run.settings.memory}", _FROM_MEMORY)
    if run.stream.size is not None:
        _require_fit(run, (1, run.stream.size, run.stream.size), run.stream.classes_per_task, 1, torch.device("cpu"))
    if run.recipe.compile:
        _require_compiler()


def require_own(run: Run, stream: Stream) -> None:
    """Refuse a stream that was not made from the run's settings: its result would stand under another's name.

    Raises:
        ValueError: then; names what differs.
    """
    there = stream.made_from
    if there is None:
        raise ValueError(
            f"the stream {stream.name} was cut from images of its own, and the run is on {run.stream.data}; "
            "give streams.make(run.stream), or leave the stream out"
        )
    for field in dataclasses.fields(there):
        theirs, own = getattr(there, field.name), getattr(run.stream, field.name)
        if theirs != own:
            raise ValueError(
                f"the stream was made with {field.name}={theirs!r}, and the run has {field.name}={own!r}; "
                "give streams.make(run.stream), or leave the stream out"
            )


def check_on(run: Run, stream: Stream) -> None:
    """Ask of the method, the images, the network, the memory and the machine together.

    Raises:
        ValueError: when the method cannot learn the stream with its settings (``Method.check``); when the network
            cannot take the images; when the memory is larger than what there is to store; when
            a batch has a single example that batch-norm cannot train on; when the images of a step do not fit into the
            memory that is free.
    """
    METHODS[run.method].check(stream, run.settings)
    shape, largest = tuple(stream.images.shape[1:]), max(len(task.train) for task in stream.tasks)
    count = min(run.recipe.batch, largest)
    if isinstance(run.settings, MemorySettings):
        if run.settings.memory > len(stream.labels):
            raise ValueError(
                f"memory={run.settings.memory} is more than the {len(stream.labels)} training images of the stream; "
                f"give at most {len(stream.labels)} (--memory {len(stream.labels)})"
            )
        smallest = min(len(task.train) for task in stream.tasks)
        _require_within(run.settings, smallest, f"the {smallest} training images of a task", ("validation",))
        if run.method in _JOINED:
            count += min(run.settings.memory_batch, run.settings.memory)
    _require_fit(run, shape, len(stream.classes), count, stream.images.device)
    _require_pairs(run, stream)


def _require_within(settings: MemorySettings, there: int, what: str, names: Sequence[str]) -> None:
    """Refuse counts of examples above those ``there`` that were asked for; a default then takes all there are."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in names and value > there and value != field.default:
            raise ValueError(
                f"{field.name}={value} is more than {what}, and could never be drawn; give at most {there}"
            )


def _require_fit(run: Run, shape: tuple[int, ...], classes: int, count: int, device: torch.device) -> None:
    """Refuse images ``shape`` (C, H, W) that the network cannot take, or of which ``count`` do not fit into memory."""
    network = run.recipe.network
    values = 4 * count * torch.Size(shape).numel()  # float32, and the least of all: no network is needed for it
    _require_free(values, network, shape, count, device)
    try:
        weights, layers = _bytes(network, shape, classes, count)
    except ValueError:  # batch-norm's, of a single example
        return
    except RuntimeError as error:
        fitting = next((side for side in range(1, _LARGEST_SIDE + 1) if _takes(network, shape[0], side, classes)), None)
        way_out = "give another network" if fitting is None else f"give size={fitting} or more (--set size={fitting})"
        raise ValueError(f"{network} cannot take images of {_pixels(shape)}: they are too small; {way_out}") from error
    moving = 3 if run.recipe.momentum else 2  # weights, gradients, momentum
    _require_free(values + moving * weights + layers, network, shape, count, device)


@functools.lru_cache(maxsize=64)
def _bytes(network: str, shape: tuple[int, ...], classes: int, count: int) -> tuple[int, int]:
    """Return what the weights take, and at least what a step keeps of ``count`` images; nothing is computed."""
    kept: list[int] = []

    def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        kept.append(output.numel() * output.element_size())

    with torch.device("meta"), torch.no_grad():
        model = NETWORKS[network](shape, classes, 0).train()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                layer.register_forward_hook(note)
        model(torch.empty(count, *shape))
    return sum(each.numel() * each.element_size() for each in model.parameters()), sum(kept)


def _takes(network: str, channels: int, side: int, classes: int) -> bool:
    try:
        _bytes(network, (channels, side, side), classes, 2)
    except RuntimeError:
        return False
    return True


def _require_free(needed: int, network: str, shape: Sequence[int], count: int, device: torch.device) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"a step of {network} on {count} images of {_pixels(shape)} needs at least {needed / 1e9:,.1f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are free; give a smaller batch, size or network"
        )


def _pixels(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[2]} pixels"


def _require_pairs(run: Run, stream: Stream) -> None:
    """Refuse batches of a single example where the network's batch-norm would see one value of each channel."""
    shape, classes = tuple(stream.images.shape[1:]), len(stream.classes)
    try:
        _bytes(run.recipe.network, shape, classes, 1)
    except ValueError as error:
        for name, size, count in _cut(run, stream):
            if 1 in (size, count % size) or count == 1:
                raise ValueError(
                    f"{name}={size} cuts {count} images so that one stands alone, and the batch-norm of "
                    f"{run.recipe.network} cannot train on a single image of {_pixels(shape)}; "
                    f"give {_other(name, size, run, stream)}, or a larger size"
                ) from error


def _cut(run: Run, stream: Stream) -> Iterator[tuple[str, int, int]]:
    """Yield the setting that cuts examples into batches, its value, and how many examples it cuts at a time."""
    counts = [len(task.train) for task in stream.tasks]
    if run.method == "joint":
        counts = [sum(counts)]
    elif run.method in _JOINED:
        counts = [min(run.recipe.batch, counts[0])]  # the first step has nothing to join
    for count in counts if run.method != "gdumb" else []:
        yield "batch", run.recipe.batch, count
    if run.method in _ON_MEMORY and isinstance(run.settings, MemorySettings):
        share = len(counts) if run.method == "gem" else 1
        yield "memory_batch", run.settings.memory_batch, max(run.settings.memory // share, 1)


def _other(name: str, size: int, run: Run, stream: Stream) -> str:
    """Return a value that leaves no example alone, as ``name=value``."""
    counts = [count for other, _, count in _cut(run, stream) if other == name]
    others = sorted(range(2, max(counts) + 2), key=lambda other: abs(other - size))
    return next((f"{name}={other}" for other in others if all(count % other != 1 for count in counts)), "more images")


def _require_compiler() -> None:
    """Compile a line of arithmetic: nothing short of it tells whether compiler and headers are all there."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"compile=True needs a C++ compiler that works ({reason}); install g++, or leave compile out"
        ) from error
