"""The reference points (fine-tuning, joint training) and plain rehearsal."""

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from metasp_lite.continual.buffer import Memories, balanced_choice
from metasp_lite.continual.learner import Batch, Learner, rehearse, shuffled
from metasp_lite.continual.methods.base import (
    M_co,
    MemorySettings,
    Method,
    MethodSettings,
    NoSettings,
    Rehearsal,
    plain_step,
)
from metasp_lite.continual.streams import Stream


class FineTune(Method[NoSettings]):
    """Train on each task as if there had been none before: the lower reference."""

    paper = "the lower reference of all papers"

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on the new examples."""
        return plain_step(learner, batch)


class Joint(Method[NoSettings]):
    """Train on the examples of all tasks at once, in place of the last task: the upper reference."""

    paper = "the upper reference of all papers"
    scores_last_only = True

    def examples(self, learner: Learner) -> Tensor:
        """Return nothing before the last task, and then everything."""
        last = learner.task_number == len(learner.stream.tasks) - 1
        return torch.cat([task.train for task in learner.stream.tasks]) if last else learner.task.train[:0]

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on a batch of all tasks."""
        return plain_step(learner, batch)


class ER(Rehearsal[M_co]):
    """Experience replay: beside each new batch one from a memory that reservoir sampling fills.

    The loss is one mean over both; what is rehearsed is cropped and flipped anew.
    """

    paper = "Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019"

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on new and remembered examples together."""
        kept = self.buffer.sample(self.settings.memory_batch, learner.draws.memory)
        loss = learner.descend(learner.loss(*rehearse(learner, batch, kept.images, kept.labels)))
        self.offer(learner, batch)
        return loss


@dataclass(frozen=True)
class LateSettings(MemorySettings):
    """Rehearsal in the last epochs of a task only."""

    late_epochs: int = 2
    rehearse_trusted: bool = False  # half of what is rehearsed from the examples that the stream has set aside

    def __post_init__(self) -> None:
        """Refuse a schedule that never rehearses."""
        super().__post_init__()
        if self.late_epochs < 1:
            raise ValueError(f"late_epochs={self.late_epochs} must be at least 1")


_L_co = TypeVar("_L_co", bound=LateSettings, covariant=True)


class ERLate(Rehearsal[_L_co]):
    """ER on MetaSP's schedule and with its memory, but plain weights: separates the schedule from the influence.

    Most epochs of a task train on new examples alone; only the last ones rehearse.  After task t the memory gives
    ⌊|M|/t⌋ places to the task, and with them those that are still empty; its examples are drawn at random and even over
    the classes.
    """

    paper = "the control of this course; no paper of its own"
    Settings = LateSettings
    on_trusted: ClassVar[tuple[str, ...]] = ("rehearse_trusted",)  # settings that need trusted examples

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on new and, in the last epochs, remembered examples."""
        if not self.rehearses(learner):
            return plain_step(learner, batch)
        _, images, labels = self.rehearsed(learner)
        return learner.descend(learner.loss(*rehearse(learner, batch, images, labels)))

    def rehearsed(self, learner: Learner) -> tuple[Memories, Tensor, Tensor]:
        """Draw what this step rehearses: what comes from the memory, and all its images and labels, those first."""
        size, stream = self.settings.memory_batch, learner.stream
        share = size // 2 if self.settings.rehearse_trusted else 0
        kept = self.buffer.sample(size - share, learner.draws.memory)
        if share == 0:
            return kept, kept.images, kept.labels
        trusted = torch.cat([task.trusted for task in stream.tasks[: learner.task_number + 1]])
        chosen = shuffled(trusted, share, learner.draws.memory)[0]
        return kept, torch.cat([kept.images, stream.images[chosen]]), torch.cat([kept.labels, stream.labels[chosen]])

    @classmethod
    def check(cls, stream: Stream, settings: MethodSettings) -> None:
        """Refuse to make use of trusted examples where the stream has set none aside.

        Raises:
            ValueError: then.
        """
        for name in cls.on_trusted:
            if getattr(settings, name) and not len(stream.tasks[0].trusted):
                raise ValueError(f"{name}=True: the stream has set no examples aside; give trusted (--set trusted=20)")

    def rehearses(self, learner: Learner) -> bool:
        """Whether this epoch is one of the last, and there is something to rehearse or trusted examples to go by."""
        trusted = any(getattr(self.settings, name) for name in self.on_trusted)
        return learner.epochs_left <= self.settings.late_epochs and (len(self.buffer) > 0 or trusted)

    def end_task(self, learner: Learner) -> None:
        """Give the task its share of the memory.  No place stays empty while there is an example for it."""
        share = self.buffer.capacity // (learner.task_number + 1)
        places = min(max(share, len(self.buffer.free)), len(self.candidates(learner)))
        self.make_room(learner, places)
        chosen = self.choose(learner, places)
        stream = learner.stream
        self.buffer.put(
            self.buffer.free[: len(chosen)], stream.images[chosen], stream.labels[chosen], learner.task_number
        )

    def make_room(self, learner: Learner, places: int) -> None:
        """Drop stored examples until ``places`` are free, and no more, so that the classes that stay are even."""
        filled = self.buffer.filled
        keep = min(len(filled), self.buffer.capacity - places)
        kept = balanced_choice(self.buffer.labels[filled], keep, self.harm_of_stored(filled), learner.draws.storing)
        dropped = torch.ones(len(filled), dtype=torch.bool, device=filled.device)
        dropped[kept] = False
        self.buffer.drop(filled[dropped])

    def harm_of_stored(self, slots: Tensor) -> Tensor | None:
        """Return what ranks the stored examples for dropping, highest first, or None for chance."""
        return None

    def candidates(self, learner: Learner) -> Tensor:
        """Return what of the task the memory may store: positions in the stream's images."""
        return learner.task.train

    def choose(self, learner: Learner, places: int) -> Tensor:
        """Choose the examples of the task to store: positions in the stream's images."""
        train = self.candidates(learner)
        return train[balanced_choice(learner.stream.labels[train], places, None, learner.draws.storing)]
