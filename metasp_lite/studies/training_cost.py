"""How fast training steps are beside a bare PyTorch loop."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from tqdm import tqdm

from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods import METHODS, Method
from metasp_lite.continual.methods.base import MemorySettings, Rehearsal
from metasp_lite.continual.methods.metasp import MetaSPSettings
from metasp_lite.continual.streams import Stream, split
from metasp_lite.images import ImageSet

_ROUNDS = {"lite-cnn": 40, "resnet18-20": 12}  # a network's repetitions; the variants take turns within each
_SEED = 0
_SETTINGS = {"er": MemorySettings(memory=500), "metasp": MetaSPSettings(memory=500)}


def study() -> list[dict[str, object]]:
    """Measure every network on one thread; a row for each variant."""
    torch.set_num_threads(1)
    return [row for network in tqdm(_ROUNDS, unit="network") for row in measure(network, _ROUNDS[network])]


def measure(network: str, rounds: int) -> list[dict[str, object]]:
    """Time a bare PyTorch step, ER's, MetaSP's and the augmentation alone on the same batch sizes, taking turns.

    64 images of 3×32×32 a step: 32 new, 32 from a memory of 500; crops of 4 pixels and flips.  The bare loop has its 64
    inputs ready.
    """
    began = time.perf_counter()
    stream = made_up_stream()
    seconds: dict[str, list[float]] = {}
    variants: dict[str, Callable[[], object]] = {
        "bare": _bare_step(stream, network),
        "augmentation": _augmentation(stream, network),
    }
    variants |= {name: _method_step(stream, network, name) for name in _SETTINGS}
    for repetition in range(rounds + 1):
        for name, step in variants.items():
            start = time.process_time()
            step()
            if repetition:  # the first round warms up
                seconds.setdefault(name, []).append(time.process_time() - start)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    return [
        {
            "network": network,
            "variant": name,
            "steps_per_second": round(1 / median[name], 2),
            "images_per_second": round(64 / median[name]),
            "ratio_to_bare": round(median["bare"] / median[name], 3),
            "share_of_er_step": round(median[name] / median["er"], 4),
            "settings": {"batch": 32, "memory_batch": 32, "rounds": rounds, "threads": 1, "seed": _SEED},
            "wall_seconds": round(time.perf_counter() - began, 1),
        }
        for name in variants
    ]


def made_up_stream(
    count: int = 2000, side: int = 32, *, classes_per_task: int = 5, device: torch.device | str = "cpu"
) -> Stream:
    """Tasks of random images of ten classes, by default as large as CIFAR's; for what does not depend on the images."""
    draw = torch.Generator().manual_seed(_SEED)

    def images(number: int) -> ImageSet:
        pixels = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=draw)
        names = tuple(str(k) for k in range(10))
        return ImageSet(pixels, torch.arange(number) % 10, names, "made-up", "random numbers")

    train, test = images(count), images(10)
    return split(train, test, classes_per_task=classes_per_task, padding=side // 8, flip=True, device=device)


def through_task(learner: Learner, method: Method) -> None:
    """Train on ``learner.task`` as the trainer does, without files and without scores."""
    method.begin_task(learner)
    for epoch in range(learner.recipe.epochs):
        learner.epoch = epoch
        for index in learner.batches(method.examples(learner)):
            method.step(learner, learner.batch(index))
    method.end_task(learner)


def _bare_step(stream: Stream, network: str) -> Callable[[], None]:
    """Return a step as any PyTorch tutorial writes it, on inputs that are ready."""
    learner = Learner(stream, Recipe(network, epochs=1), _SEED)
    inputs, labels = stream.augmentation.normalise(stream.images[:64]), stream.labels[:64]

    def step() -> None:
        learner.optimizer.zero_grad()
        F.cross_entropy(learner.model(inputs), labels).backward()
        learner.optimizer.step()

    return step


def _method_step(stream: Stream, network: str, name: str) -> Callable[[], object]:
    """Return a rehearsing step of a method: fetch, augment, sample the memory, train."""
    learner = Learner(stream, Recipe(network, epochs=1), _SEED)
    method = METHODS[name](learner, _SETTINGS[name])
    assert isinstance(method, Rehearsal)
    kept = stream.tasks[0].train[:500]
    method.buffer.put(torch.arange(500), stream.images[kept], stream.labels[kept], 0)
    learner.task_number, learner.epoch = 1, 0
    index = learner.task.train[:32]
    return lambda: method.step(learner, learner.batch(index))


def _augmentation(stream: Stream, network: str) -> Callable[[], object]:
    """Return the augmentation of one step's 64 images."""
    learner = Learner(stream, Recipe(network, epochs=1), _SEED)
    return lambda: learner.replayed(stream.images[:64])
