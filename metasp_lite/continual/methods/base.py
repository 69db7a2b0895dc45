"""What every continual-learning method is: one step, and what is kept when a task ends; and what several share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from metasp_lite.calculus.losses import Examples, losses_at
from metasp_lite.continual.buffer import Buffer
from metasp_lite.continual.fields import check_types
from metasp_lite.continual.learner import Batch, Learner, evaluating
from metasp_lite.continual.streams import Stream
from metasp_lite.influence.pseudo_update import SGDRule, momentum_of


@dataclass(frozen=True)
class MethodSettings:
    """What the settings of every method derive from."""

    def __post_init__(self) -> None:
        """Refuse values of another type than their fields have."""
        check_types(self)


@dataclass(frozen=True)
class NoSettings(MethodSettings):
    """The settings of a method that has none."""


@dataclass(frozen=True)
class MemorySettings(MethodSettings):
    """The settings of a method that rehearses."""

    memory: int = 200  # |M|, stored examples
    memory_batch: int = 32  # of them in a step, beside the new ones

    def __post_init__(self) -> None:
        """Refuse memories that hold nothing."""
        super().__post_init__()
        if self.memory < 1 or self.memory_batch < 1:
            raise ValueError(f"memory={self.memory} and memory_batch={self.memory_batch} must be at least 1")
        if self.memory >= 2**31:
            raise ValueError(f"memory={self.memory} must be below 2**31; no stream has so many examples")


# A method only reads its settings: where any method will do, one with settings of its own does too (covariant).
_S_co = TypeVar("_S_co", bound=MethodSettings, covariant=True)
M_co = TypeVar("M_co", bound=MemorySettings, covariant=True)


class Method(Generic[_S_co]):
    """A method by its ``step``.  State that ``step`` or ``end_task`` changes goes into ``state_dict``, or a resumed run
    would differ from an uninterrupted one.
    """

    paper: ClassVar[str]  # who proposed it, where
    Settings: ClassVar[type[MethodSettings]] = NoSettings
    scores_last_only: ClassVar[bool] = False  # whether only the accuracies after the last task mean anything

    def __init__(self, learner: Learner, settings: _S_co) -> None:
        """Prepare for the stream of ``learner``.

        Raises:
            ValueError: as ``check``.
        """
        self.check(learner.stream, settings)
        self.settings = settings

    @classmethod
    def check(cls, stream: Stream, settings: MethodSettings) -> None:
        """Refuse a stream that the method cannot learn with these settings, before anything is written.

        Raises:
            ValueError: names the setting and what it has to be.
        """

    def examples(self, learner: Learner) -> Tensor:
        """Return the training examples of the task that begins, as positions in the stream's images ``(n,)``."""
        return learner.task.train

    def begin_task(self, learner: Learner) -> None:
        """Do what comes before the first step of ``learner.task``."""

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Train on one batch of new examples and return a loss ``()`` to show."""
        raise NotImplementedError

    def end_task(self, learner: Learner) -> None:
        """Do what comes after the last step of ``learner.task``, before it is scored."""

    def remedies(self) -> list[str]:
        """Return settings to try, as name=value, when training leaves the finite numbers."""
        return []

    def state_dict(self) -> dict[str, object]:
        """Return all that has changed since the start, as tensors, numbers and strings."""
        return {}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore what ``state_dict`` gave."""


class Rehearsal(Method[M_co]):
    """A method with a memory."""

    Settings = MemorySettings
    columns: ClassVar[tuple[str, ...]] = ()  # numbers to keep with each stored example

    def __init__(self, learner: Learner, settings: M_co) -> None:
        """Prepare an empty memory for the stream's images."""
        super().__init__(learner, settings)
        images = learner.stream.images
        self.buffer = Buffer(settings.memory, images.shape[1:], images.device, self.columns)

    def offer(self, learner: Learner, batch: Batch) -> None:
        """Let reservoir sampling see the batch, once: in the task's first epoch."""
        if learner.epoch == 0:
            self.buffer.reservoir(batch.images, batch.labels, learner.task_number, learner.draws.storing)

    def state_dict(self) -> dict[str, object]:
        """Return the memory."""
        return {"buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore the memory."""
        self.buffer.load_state_dict(state["buffer"])


def plain_step(learner: Learner, batch: Batch) -> Tensor:
    """Descend on the new examples alone."""
    return learner.descend(learner.loss(batch.inputs, batch.labels))


def features_of(learner: Learner, index: Tensor) -> Tensor:
    """Return what the network's last layer sees of the examples ``index (n,)``, in evaluation mode: ``(n, F)``."""
    body, images = learner.model[:-1], learner.stream.images
    with torch.no_grad(), evaluating(body):
        pieces = [body(learner.stream.augmentation.normalise(images[part])) for part in index.split(500)]
    return torch.cat(pieces)


def virtual_step(learner: Learner, examples: Examples) -> dict[str, Tensor]:
    """Parameters by name after one step on ``examples`` that is not taken: θ' = θ − a ∇ℓ(θ) for plain SGD.

    With momentum or weight decay it is the optimiser's own step, as it would be taken from where it stands now.
    """
    parameters: dict[str, Tensor] = dict(learner.model.named_parameters())
    losses, _ = losses_at(learner.model, parameters, examples)
    gradients = torch.autograd.grad(losses.mean(), list(parameters.values()))
    rule = SGDRule.of(learner.optimizer.param_groups[0])
    moved = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        momentum = momentum_of(learner.optimizer, parameter)
        momentum = torch.zeros_like(gradient) if momentum is None else momentum
        moved[name], _ = rule.step(parameter.detach(), momentum, gradient)
    return moved
