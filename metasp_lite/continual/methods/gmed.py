"""GMED: remembered examples are edited so that they suffer more from the step that comes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metasp_lite.calculus.losses import losses_at
from metasp_lite.continual.buffer import Memories
from metasp_lite.continual.learner import Batch, Learner, rehearse
from metasp_lite.continual.methods.base import MemorySettings, Rehearsal, plain_step, virtual_step


@dataclass(frozen=True)
class GMEDSettings(MemorySettings):
    """How far examples are edited.  The paper tunes all three for each data set; these are ours."""

    stride: float = 0.1  # α; inputs have deviation 1
    decay: float = 0.9  # γ: the stride shrinks by it with each edit of an example; 1 for never
    regularisation: float = 0.01  # β: how much the edit is to lower today's loss

    def __post_init__(self) -> None:
        """Refuse edits that grow, or that go the other way."""
        super().__post_init__()
        if not (0 <= self.stride < math.inf and 0 <= self.regularisation < math.inf and 0 < self.decay <= 1):
            raise ValueError(
                f"stride={self.stride} and regularisation={self.regularisation} must be finite and at least 0, "
                f"decay={self.decay} above 0 and at most 1"
            )


class GMED(Rehearsal[GMEDSettings]):
    """ER whose remembered examples are edited, just before they are rehearsed, towards what the new batch harms most.

    x ← x + α γᵖ ∇ₓ[ℓ(x, θ') − ℓ(x, θ) − β ℓ(x, θ)],  θ' the step on the new batch alone, p the edits of x so far.
    An edit stays with its example and is made on the whole image; shifts and flips come after.  It is not clipped to
    the range of pixels.  (The authors' published code adds β ℓ(x, θ) instead; this is the paper's sign.)  Batch-norm
    takes batch statistics, θ' and the edits leave its running averages alone.

    What is our choice: the loss that is differentiated is a sum over the remembered examples, not a mean, so that the
    stride is that of each example, however many there are; the real step descends on one mean over new and edited ones.
    """

    paper = "Jin et al., Gradient-based Editing of Memory Examples, NeurIPS 2021"
    Settings = GMEDSettings
    columns: ClassVar[tuple[str, ...]] = ("edits",)  # p

    def __init__(self, learner: Learner, settings: GMEDSettings) -> None:
        """Prepare an empty memory, and a change of the input for each of its slots."""
        super().__init__(learner, settings)
        self.changes = torch.zeros(self.buffer.images.shape, device=self.buffer.images.device)  # units of the input

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Look ahead, edit the remembered examples, descend on new and edited ones together."""
        if not len(self.buffer):
            loss = plain_step(learner, batch)
        else:
            model, s = learner.model, self.settings
            kept = self.buffer.sample(s.memory_batch, learner.draws.memory)
            now: dict[str, Tensor] = dict(model.named_parameters())
            moved = virtual_step(learner, (batch.inputs, batch.labels))
            inputs = learner.stream.augmentation.normalise(self.pixels(learner, kept))
            edited = edit(
                inputs,
                lambda x: losses_at(model, now, (x, kept.labels))[0],
                lambda x: losses_at(model, moved, (x, kept.labels))[0],
                s.stride * s.decay ** self.buffer.columns["edits"][kept.slots],
                s.regularisation,
            )
            self.changes[kept.slots] += edited - inputs
            self.buffer.columns["edits"][kept.slots] += 1
            loss = learner.descend(learner.loss(*rehearse(learner, batch, self.pixels(learner, kept), kept.labels)))
        self.offer(learner, batch)
        return loss

    def pixels(self, learner: Learner, kept: Memories) -> Tensor:
        """Return remembered images as edited so far, float32 on the scale of pixels ``(k, C, H, W)``."""
        std = torch.tensor(learner.stream.augmentation.std, device=kept.images.device).view(-1, 1, 1)
        return kept.images + self.changes[kept.slots] * std

    def offer(self, learner: Learner, batch: Batch) -> None:
        """Let reservoir sampling see the batch in the task's first epoch; a new example begins unedited."""
        if learner.epoch == 0:
            slots = self.buffer.reservoir(batch.images, batch.labels, learner.task_number, learner.draws.storing)
            self.changes[slots[slots >= 0]] = 0

    def state_dict(self) -> dict[str, object]:
        """Return the memory and what was changed in it."""
        return {**super().state_dict(), "changes": self.changes}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore the memory and what was changed in it."""
        super().load_state_dict(state)
        self.changes.copy_(state["changes"])


_LossesOf = Callable[[Tensor], Tensor]  # inputs (k, …) -> losses (k,)


def edit(inputs: Tensor, now: _LossesOf, after: _LossesOf, strides: Tensor, regularisation: float) -> Tensor:
    """x + s ∇ₓ[ℓ'(x) − (1 + β) ℓ(x)] for each of ``inputs (k, …)``, with ``strides`` s ``(k,)``.

    ``now`` is ℓ, ``after`` ℓ', β ``regularisation``.  Where batch-norm mixes the examples, ∇ₓ is that of their sum.
    """
    leaves = inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad((after(leaves) - (1 + regularisation) * now(leaves)).sum(), leaves)
    return inputs + strides.view(-1, *[1] * (inputs.dim() - 1)) * slope
