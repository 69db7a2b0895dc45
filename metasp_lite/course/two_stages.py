"""The two-stage problems of notebooks 08 and 09: some classes of a data set for pretraining, others for finetuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from metasp_lite import settings
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Objective, gradient
from metasp_lite.calculus.optimum import adam, lbfgs, minimise
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.doors import Count, Nonnegative, Seed, Whole, typed
from metasp_lite.images import sets, sources
from metasp_lite.networks import TABLE_A, two_stage
from metasp_lite.stages.fixed import embedding_size, head_objective
from metasp_lite.stages.unrolled import Adam, ShortRun

_POOLING = {"averages": nn.AvgPool2d, "maxima": nn.MaxPool2d}


@typed
@dataclass(frozen=True)
class Setup:
    """What is pretrained on, what is finetuned on, and with which network."""

    data: str = "fashion-mnist"
    source: str | None = "bundled"
    first: tuple[int, ...] = (0, 1, 2, 3)  # classes of pretraining
    second: tuple[int, ...] = (4, 5, 6, 7, 8, 9)  # classes of finetuning
    first_per_class: Count = 250
    second_per_class: Count = 100
    test_per_class: Count = 4
    skip: Whole = 0  # training images of each class to pass over, for another draw of them
    network: str = "mnist"  # in Table A
    width: Count = 16  # divides its numbers of filters and units
    pooling: Literal["averages", "maxima"] = "averages"
    size: Count = 14  # pixels
    l2: Nonnegative = 0.01
    seed: Seed = 0  # of the starting weights
    papers: tuple[str, ...] = ("MNIST",)  # the experiments whose protocols are followed, below

    def __post_init__(self) -> None:
        """Refuse what has no network, and a class that is there twice."""
        for name, known in (("pooling", _POOLING), ("network", TABLE_A)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose from {', '.join(known)}")
        for name in ("first", "second"):
            classes = getattr(self, name)
            if len(set(classes)) < len(classes) or len(classes) < 2 or min(classes) < 0:
                raise ValueError(f"{name}={classes}: give two or more different classes")


SETUPS = {
    "fashion-mnist": Setup(),
    "mnist": Setup("mnist", None),
    # Bird and frog, then the others; the layers are those for MNIST: CIFAR's have no clean optimum (study "optima").
    "cifar10": Setup("cifar10", None, (2, 6), (0, 1, 3, 4, 5, 7, 8, 9), 500, 75, 3, papers=("MNIST", "CIFAR")),
}


# the damping of G'' and of F_ΘΘ in the paper's appendix B, and how it retrains there
PAPER_DAMPING = {"MNIST": (1e-2, 1e-8), "CIFAR": (1e-8, 1e-6)}
PAPER_PROTOCOL = {"MNIST": ((100, 100), 512), "CIFAR": ((6000, 3000), 128)}


@typed
@dataclass(frozen=True)
class TwoStages:
    """A setup with its images: both objectives, the test losses, and where training starts."""

    setup: Setup

    @cached_property
    def pretraining_images(self) -> sets.ImageSet:
        """The images of the first stage, labelled 0, 1, …"""
        return self._images("train", self.setup.first, self.setup.first_per_class, self.setup.skip)

    @cached_property
    def finetuning_images(self) -> sets.ImageSet:
        """The training images of the second stage."""
        return self._images("train", self.setup.second, self.setup.second_per_class, self.setup.skip)

    @cached_property
    def test_images(self) -> sets.ImageSet:
        """The test images of the second stage."""
        return self._images("test", self.setup.second, self.setup.test_per_class)

    @cached_property
    def originals(self) -> tuple[Tensor, Tensor]:
        """The images of pretraining and those to test on as the data set has them, (N, C, H, W): to be looked at."""
        s = self.setup
        first = self._images("train", s.first, s.first_per_class, s.skip, original=True)
        return first.images, self._images("test", s.second, s.test_per_class, original=True).images

    @cached_property
    def pretraining(self) -> Objective:
        """G(W, U)."""
        return Objective(self._losses(self.pretraining_images), self.setup.l2)

    @cached_property
    def finetuning(self) -> Objective:
        """F(W, Θ)."""
        return Objective(self._losses(self.finetuning_images), self.setup.l2)

    @cached_property
    def test(self) -> ExampleLosses:
        """The loss of each test image at [W; Θ], ``(K,)``."""
        return ExampleLosses(self.finetuning.losses.model, *_inputs(self.test_images))

    @cached_property
    def embedding(self) -> int:
        """w, how many parameters both stages share."""
        return embedding_size(self.pretraining.losses.model)

    @cached_property
    def first_start(self) -> Tensor:
        """[W; U] before training."""
        return flatten_parameters(self.pretraining.losses.model)

    @cached_property
    def head_start(self) -> Tensor:
        """Θ before training."""
        return flatten_parameters(self.finetuning.losses.model)[self.embedding :]

    def pretrained(self) -> Curvature:
        """Train the first stage to its optimum; the curvature of G there.

        Newton steps finish what L-BFGS would take as many steps again for: the last digits along flat directions.
        """
        theta = adam(self.pretraining, self.first_start, 400)
        for _ in range(7):
            theta = lbfgs(self.pretraining, theta, 300)
            if gradient(self.pretraining, theta).norm() < 1e-5:
                break
        return Curvature(self.pretraining, minimise(self.pretraining, theta, lbfgs_steps=0))

    def finetuned(self, pretrained: Tensor) -> Curvature:
        """Train the head to its optimum on the fixed embedding of [W; U]; the curvature of F at [W; Θ]."""
        embedding = pretrained[: self.embedding]
        head = minimise(head_objective(self.finetuning, embedding), self.head_start)
        return Curvature(self.finetuning, torch.cat([embedding, head]))

    @typed
    def left_out(self, count: Count = 40) -> Tensor:
        """Draw ``count`` pretraining examples to leave out; all of them, where there are fewer."""
        draw = torch.Generator().manual_seed(1)
        return torch.randperm(len(self.pretraining_images), generator=draw)[:count].to(settings.device())

    @typed
    def short_run(self, steps: int, batch: Count = 64, seed: Seed = 2) -> ShortRun:
        """Finetuning as it is done: ``steps`` of Adam (0.001) on batches drawn by ``seed``; the embedding moves, too.

        Raises:
            ValueError: for fewer than one step.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: take at least one")
        draw, size = torch.Generator().manual_seed(seed), len(self.finetuning_images)
        batches = torch.stack([torch.randperm(size, generator=draw)[:batch] for _ in range(steps)])
        return ShortRun(self.finetuning, Adam(), batches.to(settings.device()))

    def _images(
        self, split: sets.Split, classes: Sequence[int], per_class: int, skip: int = 0, original: bool = False
    ) -> sets.ImageSet:
        size = None if original else self.setup.size
        whole = sources.load(self.setup.data, split, source=self.setup.source, size=size)
        if max(classes) >= len(whole.classes):
            raise ValueError(f"classes {tuple(classes)}: {whole.name} has those from 0 to {len(whole.classes) - 1}")
        places = whole.places(classes, per_class, skip=skip)
        for label, mine in zip(classes, places, strict=True):
            if len(mine) < per_class:
                raise ValueError(
                    f"class {whole.classes[label]!r} of {whole.name} has too few {split} images for "
                    f"{per_class} after the first {skip}"
                )
        return whole.take(torch.cat(places)).only(classes)

    def _losses(self, images: sets.ImageSet) -> ExampleLosses:
        s = self.setup
        shape = tuple(images.images.shape[1:])
        pooling = _POOLING[s.pooling]
        model = two_stage(TABLE_A[s.network], shape, len(images.classes), width=s.width, pooling=pooling, seed=s.seed)
        return ExampleLosses(model.to(settings.device()), *_inputs(images))


def _inputs(images: sets.ImageSet) -> tuple[Tensor, Tensor]:
    """Pixels as float64 images in 0…1 and labels, on the device."""
    return images.images.to(settings.device()).double() / 255, images.labels.to(settings.device())
