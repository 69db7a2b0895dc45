"""GDumb: fill a memory evenly while the examples come, then train a fresh network on it alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.continual.learner import Batch, Learner, shuffled
from metasp_lite.continual.methods.base import MemorySettings, Rehearsal


@dataclass(frozen=True)
class GDumbSettings(MemorySettings):
    """How the fresh network is trained; ``memory_batch`` is its batch."""

    dumb_epochs: int = 100  # over the memory

    def __post_init__(self) -> None:
        """Refuse networks that are not trained."""
        super().__post_init__()
        if self.dumb_epochs < 1:
            raise ValueError(f"dumb_epochs={self.dumb_epochs} must be at least 1")


class GDumb(Rehearsal[GDumbSettings]):
    """A greedy balanced memory and, after each task, a network trained from scratch on it: how much do the rest gain?

    The recipe's optimiser, with its lr annealed to 0 on one cosine; the paper restarts the cosine and mixes images
    (CutMix), we do neither.  The paper prints accuracies at the end alone.  The network is trained anew after every
    task, so those after each task are as real here, and all are kept; its BWT tells how the places in the memory, not
    the weights, went from old tasks to new ones.
    """

    paper = "Prabhu et al., GDumb: A Simple Approach that Questions Our Progress in Continual Learning, ECCV 2020"
    Settings = GDumbSettings

    def examples(self, learner: Learner) -> Tensor:
        """Return the task's examples in its first epoch; the others have nothing to do."""
        return learner.task.train if learner.epoch == 0 else learner.task.train[:0]

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Offer the batch to the memory and train nothing: the loss is 0."""
        self.offer(learner, batch)
        return torch.zeros(())

    def offer(self, learner: Learner, batch: Batch) -> None:
        """Put each example of the batch where the greedy rule says; of two in one slot the later stays."""
        held, places = self.buffer.labels.tolist(), {}
        for i, label in enumerate(batch.labels.tolist()):
            slot = greedy_slot(held, label, learner.draws.storing)
            if slot is not None:
                held[slot] = label
                places[slot] = i
        slots, chosen = (torch.tensor(list(v), dtype=torch.int64).to(batch.labels) for v in (places, places.values()))
        self.buffer.put(slots, batch.images[chosen], batch.labels[chosen], learner.task_number)

    def end_task(self, learner: Learner) -> None:
        """Train a network with fresh weights on the memory, and put it in the place of the last one."""
        epochs = self.settings.dumb_epochs
        seed = int(torch.randint(0, 2**31 - 1, (), generator=learner.draws.own))
        learner.model = learner.new_network(seed)
        learner.optimizer = learner.new_optimizer(learner.model)
        for epoch in range(epochs):
            for group in learner.optimizer.param_groups:
                group["lr"] = learner.recipe.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
            for slots in shuffled(self.buffer.filled, self.settings.memory_batch, learner.draws.memory):
                kept = self.buffer.read(slots)
                loss = learner.descend(learner.loss(learner.replayed(kept.images), kept.labels))
            check_finite(loss, "the loss on the memory")


def greedy_slot(held: list[int], label: int, generator: torch.Generator) -> int | None:
    """Return the slot that an example of class ``label`` gets, or None where it is passed over.

    ``held`` are the labels in the slots, −1 in an empty one.  The example is stored while its class has fewer than
    k/c of the k slots, c the number of classes held, its own included.  When no slot is free, one of the largest class
    goes, at random (of equally large classes too).
    """
    counts = {known: held.count(known) for known in {*held, label} - {-1}}
    if counts[label] >= len(held) / len(counts):
        return None
    if -1 in held:
        return held.index(-1)
    largest = max(counts.values())
    slots = [slot for slot, known in enumerate(held) if counts[known] == largest]
    return slots[int(torch.randint(0, len(slots), (), generator=generator))]
