"""Rehearsal that chooses: what to rehearse (MIR), or what to remember (GSS)."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.losses import ExampleLosses, losses_at, per_example_gradients
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.continual.learner import Batch, Learner, evaluating, rehearse
from metasp_lite.continual.methods.base import MemorySettings, Rehearsal, plain_step, virtual_step
from metasp_lite.continual.methods.replay import ER


@dataclass(frozen=True)
class MIRSettings(MemorySettings):
    """MIR's settings."""

    candidates: int = 100  # stored examples that are scored in a step

    def __post_init__(self) -> None:
        """Refuse candidates that leave no choice."""
        super().__post_init__()
        if self.candidates < self.memory_batch:
            raise ValueError(f"candidates={self.candidates} must be at least memory_batch={self.memory_batch}")


class MIR(Rehearsal[MIRSettings]):
    """ER that rehearses those of some random candidates whose loss a step on the new examples would raise most.

    Every pass but the real step's takes batch statistics where the network has batch-norm (the new examples are one
    batch, the candidates another) and leaves the running averages as they are.  Candidates are scored as stored,
    without crops and flips.

    What is our choice: the candidates are 100 for 32 places, of the current task as well as of earlier ones; the real
    step descends on one mean over new and rehearsed examples; what is rehearsed is cropped and flipped anew.
    """

    paper = "Aljundi et al., Online Continual Learning with Maximally Interfered Retrieval, NeurIPS 2019 (MI-1)"
    Settings = MIRSettings

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Try a step on the new examples, see whom it harms, and descend on the new and the harmed together."""
        if not len(self.buffer):
            loss = plain_step(learner, batch)
        else:
            candidates = self.buffer.sample(self.settings.candidates, learner.draws.memory)
            examples = learner.stream.augmentation.normalise(candidates.images), candidates.labels
            moved = virtual_step(learner, (batch.inputs, batch.labels))
            with torch.no_grad():
                before, _ = losses_at(learner.model, dict(learner.model.named_parameters()), examples)
                after, _ = losses_at(learner.model, moved, examples)
            harmed = most_interfered(before, after, self.settings.memory_batch)
            kept = self.buffer.read(candidates.slots[harmed])
            loss = learner.descend(learner.loss(*rehearse(learner, batch, kept.images, kept.labels)))
        self.offer(learner, batch)
        return loss


def most_interfered(before: Tensor, after: Tensor, k: int) -> Tensor:
    """Positions ``(k,)`` of the largest after − before, largest first; of equal ones the earlier; all if k > c.

    ``before`` and ``after`` are the losses ``(c,)`` of candidates at θ and at the virtual θ'.

    Raises:
        FloatingPointError: when a loss is NaN or infinite.
    """
    check_finite(before, "the loss of a candidate")
    check_finite(after, "the loss of a candidate after the virtual step")
    return (after - before).argsort(descending=True, stable=True)[:k]


@dataclass(frozen=True)
class GSSSettings(MemorySettings):
    """GSS's settings."""

    compared: int = 10  # n, stored examples that a new one is compared with

    def __post_init__(self) -> None:
        """Refuse to compare with nothing."""
        super().__post_init__()
        if self.compared < 1:
            raise ValueError(f"compared={self.compared} must be at least 1")


class GSS(ER[GSSSettings]):
    """ER with a memory whose gradients point in many directions (the greedy variant).

    An example's score is 1 + the largest cosine of its gradient with those of a few stored ones, taken when it is
    offered.  Once the memory is full, an example with a score below 1 may take the place of one with a high score.
    Scores are those of single examples, in evaluation mode, after the step on them and as stored, without crops and
    flips; one draw from the memory serves a batch.  The step is ER's: new and remembered examples in one batch.

    What is our choice: whether an example may enter is decided for each example by its own score, where one decision
    for a whole batch would do as well.
    """

    paper = "Aljundi et al., Gradient Based Sample Selection for Online Continual Learning, NeurIPS 2019 (greedy)"
    Settings = GSSSettings
    columns: ClassVar[tuple[str, ...]] = ("score",)

    def offer(self, learner: Learner, batch: Batch) -> None:
        """Let the memory see the batch, once: in the task's first epoch."""
        if learner.epoch > 0:
            return
        scores = torch.ones(len(batch.labels))  # with nothing to compare with: as if at a right angle
        if len(self.buffer):
            compared = self.buffer.sample(self.settings.compared, learner.draws.own)
            references = _example_gradients(learner, compared.images, compared.labels)
            size = max(2**26 // references.shape[1], 1)  # as many gradients at a time as take 256 MiB
            pieces = zip(batch.images.split(size), batch.labels.split(size), strict=True)
            scores = torch.cat([cosine_scores(_example_gradients(learner, *p), references) for p in pieces]).cpu()
        stored = self.buffer.columns["score"]
        placed = greedy_placement(stored.cpu(), self.buffer.free, scores, learner.draws.storing)
        slots, chosen = (torch.tensor(list(x), dtype=torch.int64) for x in (placed, placed.values()))
        there = stored.device
        slots, new = slots.to(there), chosen.to(there)
        self.buffer.put(slots, batch.images[new], batch.labels[new], learner.task_number)
        stored[slots] = scores[chosen].to(there)


def _example_gradients(learner: Learner, images: Tensor, labels: Tensor) -> Tensor:
    """∇ of the loss of each of the uint8 ``images (n, C, H, W)``, in evaluation mode: ``(n, P)``.

    The slow twin takes ``learner.gradient`` of one example after another.  Always in float32: torch's vmap has no
    batch-norm of bfloat16 inputs.
    """
    with evaluating(learner.model):
        inputs = learner.stream.augmentation.normalise(images)
        losses = ExampleLosses(nn.Sequential(OrderedDict(learner.model.named_children())), inputs, labels)
        return per_example_gradients(losses, flatten_parameters(learner.model))


def cosine_scores(gradients: Tensor, references: Tensor) -> Tensor:
    """c = 1 + max_k cos(g, r_k) of each row g of ``gradients (B, P)``: ``(B,)``, 0 to 2, low where g is unlike all.

    ``references (n, P)`` has the r_k, n ≥ 1.  A gradient of 0 has the cosine 0 with everything.

    Raises:
        FloatingPointError: when an entry is NaN or infinite.
    """
    check_finite(gradients, "the gradient of a new example")
    check_finite(references, "the gradient of a stored example")
    cosines = F.normalize(gradients, dim=1) @ F.normalize(references, dim=1).T
    return (1 + cosines.amax(dim=1)).clamp(0, 2)


def greedy_placement(stored: Tensor, free: Tensor, scores: Tensor, generator: torch.Generator) -> dict[int, int]:
    """Which slots the new examples take, one after another: slot -> position among the new.

    ``stored (M,)`` are the scores in the slots, ``free`` the empty ones, ``scores (B,)`` those of the new examples.
    Empty slots come first; then ``replaced_slot`` decides.  Of two examples put in one slot the later stays.
    """
    stored, empty = stored.clone(), free.tolist()
    placed: dict[int, int] = {}
    for i, score in enumerate(scores):
        slot = empty.pop(0) if empty else replaced_slot(stored, float(score), generator)
        if slot >= 0:
            stored[slot], placed[slot] = score, i
    return placed


def replaced_slot(stored: Tensor, score: float, generator: torch.Generator) -> int:
    """Slot of a full memory that a new example with the score c takes, or -1 (GSS, algorithm 2).

    Only c < 1 may enter (a gradient at more than a right angle to all it was compared with).  A slot is drawn with
    P(i) = C_i / Σ_j C_j from the scores C ``stored (M,)`` and gives way with probability C_i / (C_i + c).
    """
    if score >= 1 or not stored.any():
        return -1
    slot = int(torch.multinomial(stored.double(), 1, generator=generator))
    chance = float(torch.rand((), generator=generator, dtype=torch.float64))
    return slot if chance * (float(stored[slot]) + score) < float(stored[slot]) else -1
