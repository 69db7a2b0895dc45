"""HAL: the network's answers at a few learnt inputs, the anchors, are kept where they are."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.losses import cross_entropy
from metasp_lite.continual.learner import Batch, Learner, evaluating, rehearse, shuffled
from metasp_lite.continual.methods.base import MemorySettings, Rehearsal, features_of, virtual_step


@dataclass(frozen=True)
class HALSettings(MemorySettings):
    """How anchors are learnt and how much they hold."""

    anchoring: float = 0.1  # λ
    anchor_steps: int = 100  # of gradient ascent, after each task
    anchor_lr: float = 0.02  # how far an input goes in a step of it; inputs have deviation 1
    embedding: float = 0.1  # γ
    tuning_epochs: int = 1  # over the memory, for the network that has forgotten

    def __post_init__(self) -> None:
        """Refuse numbers that learn no anchor."""
        super().__post_init__()
        if not all(0 <= value < math.inf for value in (self.anchoring, self.embedding)):
            raise ValueError(f"anchoring={self.anchoring} and embedding={self.embedding} must be finite, at least 0")
        if not 0 < self.anchor_lr < math.inf:
            raise ValueError(f"anchor_lr={self.anchor_lr} must be positive and finite")
        if self.anchor_steps < 0 or self.tuning_epochs < 1:
            raise ValueError(
                f"anchor_steps={self.anchor_steps} must be at least 0, tuning_epochs={self.tuning_epochs} at least 1"
            )


class HAL(Rehearsal[HALSettings]):
    """ER that also keeps the logits at anchors: one input for each class seen, learnt when its task ends.

    Step:  θ ← θ − a ∇[ℓ(B) + λ mean_e,c (f_c(e, θ) − f_c(e, θ'))²],  θ' the plain ER step, held fixed in the
    gradient; so it costs two steps of ER.
    Anchor of class y after task t:  e = argmax ℓ(f(e, θ_M), y) − ℓ(f(e, θ_t), y) − γ ‖φ(e, θ_t) − φ̄_y‖²,
    θ_M tuned from θ_t on what the memory has of earlier tasks (after the first: on all it has).

    What differs from the paper: the memory is ER's reservoir instead of a ring; φ̄ is one for each class, the mean
    over its training examples when the task ends, instead of a running mean during it; the penalty is a mean over
    anchors and classes instead of a sum, so that λ needs no change as they become more; an anchor begins as a training
    example of its class and climbs in steps of one length, since from noise, or by plain steps, it reaches logits so
    large that the penalty's own step diverges.  The network sees anchors in evaluation mode.
    """

    paper = "Chaudhry et al., Using Hindsight to Anchor Past Knowledge in Continual Learning, AAAI 2021"
    Settings = HALSettings

    def __init__(self, learner: Learner, settings: HALSettings) -> None:
        """Prepare an empty memory and no anchors."""
        super().__init__(learner, settings)
        images = learner.stream.images
        self.anchors = torch.zeros(0, *images.shape[1:], device=images.device)  # network inputs

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on new and remembered examples and on how far the step would move the logits at the anchors."""
        kept = self.buffer.sample(self.settings.memory_batch, learner.draws.memory)
        examples = rehearse(learner, batch, kept.images, kept.labels)
        moved = virtual_step(learner, examples) if len(self.anchors) else None
        loss = total = learner.loss(*examples)
        if moved is not None:
            total = loss + self.settings.anchoring * drift(learner.model, moved, self.anchors)
        learner.descend(total)
        self.offer(learner, batch)
        return loss.detach()

    def end_task(self, learner: Learner) -> None:
        """Learn the anchors of the task's classes."""
        s, stream, train = self.settings, learner.stream, learner.task.train
        labels = torch.tensor(list(learner.task.classes), device=train.device)
        features, of_class = features_of(learner, train), stream.labels[train] == labels[:, None]
        centres = torch.stack([features[members].mean(dim=0) for members in of_class])
        begin = torch.stack([shuffled(train[members], 1, learner.draws.own)[0][0] for members in of_class])
        anchors = stream.augmentation.normalise(stream.images[begin])
        tuned = self.tuned(learner)
        with evaluating(learner.model), evaluating(tuned):
            for _ in range(s.anchor_steps):
                leaves = anchors.requires_grad_()
                gain = forgetting(leaves, labels, learner.model, tuned, centres, s.embedding).sum()
                (slope,) = torch.autograd.grad(gain, leaves)
                length = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-30)
                anchors = leaves.detach() + s.anchor_lr * slope / length
        self.anchors = torch.cat([self.anchors, check_finite(anchors, "an anchor")])

    def tuned(self, learner: Learner) -> nn.Sequential:
        """Return a copy of the network, trained on what the memory has of earlier tasks, or else on all it has."""
        model = copy.deepcopy(learner.model)
        optimizer = learner.new_optimizer(model)
        earlier = (self.buffer.tasks[self.buffer.filled] < learner.task_number).nonzero()[:, 0]
        slots = self.buffer.filled[earlier] if len(earlier) else self.buffer.filled
        for _ in range(self.settings.tuning_epochs):
            for piece in shuffled(slots, self.settings.memory_batch, learner.draws.own):
                kept = self.buffer.read(piece)
                optimizer.zero_grad()
                inputs = learner.stream.augmentation(kept.images, learner.draws.own)
                cross_entropy(model(inputs), kept.labels).mean().backward()
                optimizer.step()
        return model

    def state_dict(self) -> dict[str, object]:
        """Return the memory and the anchors."""
        return {**super().state_dict(), "anchors": self.anchors}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore the memory and the anchors."""
        super().load_state_dict(state)
        self.anchors = state["anchors"].clone()


def forgetting(
    anchors: Tensor,
    labels: Tensor,
    model: nn.Sequential,
    tuned: Callable[[Tensor], Tensor],
    centres: Tensor,
    strength: float,
) -> Tensor:
    """ℓ(f_M(e), y) − ℓ(f(e), y) − γ ‖φ(e) − φ̄‖² of each anchor ``(n, C, H, W)``; returns ``(n,)``.

    ``model`` is f, its last layer applied to φ; ``tuned`` is f_M; ``centres`` φ̄ ``(n, F)``; ``strength`` γ.
    """
    features = model[:-1](anchors)
    gain = cross_entropy(tuned(anchors), labels) - cross_entropy(model[-1](features), labels)
    return gain - strength * (features - centres).square().sum(dim=1)


def drift(model: nn.Module, moved: Mapping[str, Tensor], anchors: Tensor) -> Tensor:
    """Mean of (f_c(e, θ) − f_c(e, θ'))² over anchors e and classes c ``()``, with θ', ``moved``, held fixed."""
    with evaluating(model):
        with torch.no_grad():
            ahead = functional_call(model, dict(moved), (anchors,))
        return (model(anchors) - ahead).square().mean()
