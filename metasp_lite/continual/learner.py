"""What a continual-learning method works with: the network, its optimiser, the stream and where in it training is."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite.calculus.losses import Examples
from metasp_lite.continual.draws import Draws
from metasp_lite.continual.fields import check_types
from metasp_lite.continual.streams import Stream, Task
from metasp_lite.doors import Seed, typed
from metasp_lite.networks import NETWORKS


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on one task, whatever the method."""

    network: str  # a name in NETWORKS
    epochs: int  # a task
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    batch: int = 32  # new examples in a step
    # for CUDA, where they save time; they work on the CPU too, and change the last digits of every number
    channels_last: bool = False  # images and filters with the channel as the innermost dimension in memory
    bf16: bool = False  # convolutions and linear layers in bfloat16 (autocast); weights and losses stay float32
    compile: bool = False  # plain steps by torch.compile; MetaSP's passes and scores stay as they are

    def __post_init__(self) -> None:
        """Refuse numbers that no training can follow."""
        check_types(self)
        if self.network not in NETWORKS:
            raise ValueError(f"network={self.network!r} does not exist; give one of: {', '.join(NETWORKS)}")
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"epochs={self.epochs} and batch={self.batch} must be at least 1")
        if not (0 < self.lr < float("inf")):
            raise ValueError(f"lr={self.lr} must be positive and finite")
        for name in ("momentum", "weight_decay"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"Invalid {name} value: {value}; give 0 or more")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum; give momentum above 0 (--set momentum=0.9)")


class Batch(NamedTuple):
    """The new examples of one step."""

    places: Tensor  # (B,) int64, where they stand in the stream's images
    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B,) int64
    inputs: Tensor  # (B, C, H, W) float32, augmented and normalised


class _Bfloat16(nn.Sequential):
    """A sequence of layers that computes in bfloat16 where torch's autocast finds it safe; gives float32."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layers to ``inputs (B, …)``."""
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return super().forward(inputs).float()


class Learner:
    """The network in training.  Methods read all of it and change the network through ``descend`` or ``apply``."""

    @typed
    def __init__(self, stream: Stream, recipe: Recipe, seed: Seed) -> None:
        """Build the network and the optimiser; ``seed`` decides the first weights and every draw of the run."""
        self.stream, self.recipe, self.seed = stream, recipe, seed
        self.draws = Draws.of(seed)
        self.model = self.new_network(seed)
        self.optimizer = self.new_optimizer(self.model)
        self._compiled: tuple[nn.Module, Callable[[Tensor], Tensor]] | None = None  # a network and what it became
        self.task_number, self.epoch = 0, 0  # both count from 0

    @property
    def task(self) -> Task:
        """Return the task in training."""
        return self.stream.tasks[self.task_number]

    @property
    def epochs_left(self) -> int:
        """Return how many epochs of the task remain, the running one included."""
        return self.recipe.epochs - self.epoch

    def new_network(self, seed: int) -> nn.Sequential:
        """Build a network with weights drawn from ``seed``, in training mode."""
        _, channels, height, width = self.stream.images.shape
        model = NETWORKS[self.recipe.network]((channels, height, width), len(self.stream.classes), seed)
        if self.recipe.bf16:
            model = _Bfloat16(OrderedDict(model.named_children()))
        layout = torch.channels_last if self.recipe.channels_last else torch.preserve_format
        return model.to(self.stream.images.device).to(memory_format=layout).train()

    def new_optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """Build the recipe's optimiser for ``model``."""
        r = self.recipe
        return torch.optim.SGD(
            model.parameters(), lr=r.lr, momentum=r.momentum, weight_decay=r.weight_decay, nesterov=r.nesterov
        )

    def replayed(self, images: Tensor) -> Tensor:
        """Turn remembered uint8 images ``(B, C, H, W)`` into network inputs, with crops and flips drawn anew."""
        return self.stream.augmentation(images, self.draws.replays)

    def batches(self, index: Tensor) -> list[Tensor]:
        """Shuffle ``index (n,)`` and cut it into batches of the recipe; the last may be smaller."""
        return shuffled(index, self.recipe.batch, self.draws.order)

    def batch(self, index: Tensor) -> Batch:
        """Fetch the examples ``index (B,)``, augmented."""
        images = self.stream.images[index]
        inputs = self.stream.augmentation(images, self.draws.crops)
        return Batch(index, images, self.stream.labels[index], inputs)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over all classes of the stream, ``()``."""
        forward: Callable[[Tensor], Tensor] = self.model
        if self.recipe.compile:
            if self._compiled is None or self._compiled[0] is not self.model:
                self._compiled = self.model, torch.compile(self.model)
            forward = self._compiled[1]
        return F.cross_entropy(forward(inputs), labels)

    def descend(self, loss: Tensor) -> Tensor:
        """Take one step of the optimiser down ``loss`` and return its value."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def gradient(self, loss: Tensor) -> Tensor:
        """∇loss as one vector ``(P,)``; moves nothing."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.model.parameters()))])

    def apply(self, gradient: Tensor) -> None:
        """Take one step with ``gradient (P,)`` in place of the loss's own; Nesterov momentum may overwrite it."""
        start = 0
        for parameter in self.model.parameters():
            parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        self.optimizer.step()

    def state_dict(self) -> dict[str, object]:
        """Return all that training has changed, for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.state_dict(),
            "task_number": self.task_number,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go back to where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.load_state_dict(state["draws"])
        self.task_number, self.epoch = state["task_number"], state["epoch"]


def shuffled(index: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle ``index (n,)`` and cut it into pieces of ``size``; the last may be smaller."""
    order = torch.randperm(len(index), generator=generator).to(index.device)
    return list(index[order].split(size)) if len(index) else []


@typed
def rehearse(learner: Learner, batch: Batch, images: Tensor, labels: Tensor) -> Examples:
    """Join new examples and ``images (k, C, H, W)`` from the memory, on the scale of pixels, new first.

    Returns inputs and labels ``(B+k, …)``.

    Raises:
        ValueError: when images and ``labels (k,)`` differ in number.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels from the memory; give as many of both")
    return torch.cat([batch.inputs, learner.replayed(images)]), torch.cat([batch.labels, labels])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode for a while."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
