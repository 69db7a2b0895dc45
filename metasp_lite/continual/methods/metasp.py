"""MetaSP: each example of a batch weighted by what it does to old and new validation examples."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from metasp_lite.calculus.losses import Examples
from metasp_lite.continual.learner import Batch, Learner, rehearse, shuffled
from metasp_lite.continual.methods.base import plain_step
from metasp_lite.continual.methods.replay import ERLate, LateSettings
from metasp_lite.influence import metasp

_VARIANTS: dict[str, Callable[..., metasp.Fusion]] = {
    f.__name__: f for f in (metasp.official, metasp.relative, metasp.mixed, metasp.printed, metasp.dosed)
}


@dataclass(frozen=True)
class MetaSPSettings(LateSettings):
    """MetaSP's settings; defaults of the paper, but for what a lite run shortens, and for the weights.

    Those that the paper prints, in each reading of their scale, are not bounded: an influence is a product of two
    gradients, so one steep batch can throw the network far enough for the next to be steeper still, until nothing is
    finite (notebook 06).
    """

    variant: str = "official"  # of the weights: official (the authors' code), relative, mixed, printed or dosed
    pseudo_steps: int = 1  # K
    validation: int = 0  # examples in each validation set; 0 for |M|/10
    gamma: float | None = None  # a fixed share of stability in I*; None for γ*
    dose: float | None = None  # of influence, of variant=dosed alone
    validate_on_trusted: bool = False  # validation sets from what the stream has set aside, not from memory and task
    permuted: bool = False  # whether chance deals the weights out to the batch: a control
    leave_out: float = 0.0  # share of a task's examples that get no weight and no place in the memory; with dosed alone
    suspected_by: str = "loss"  # which: those of the highest mean loss so far, or of the highest mean influence (I*)

    def __post_init__(self) -> None:
        """Refuse variants that do not exist."""
        super().__post_init__()
        if self.variant not in _VARIANTS:
            raise ValueError(f"variant={self.variant!r} does not exist; give one of: {', '.join(_VARIANTS)}")
        if self.pseudo_steps < 1 or self.validation < 0:
            raise ValueError(f"pseudo_steps={self.pseudo_steps} must be at least 1, validation={self.validation} 0")
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} must be from 0, plasticity alone, to 1, stability alone")
        if (self.variant == "dosed") != (self.dose is not None):
            raise ValueError(f"dose={self.dose} and variant={self.variant}: dosed needs a dose, no other has one")
        if self.dose is not None and not 0 <= self.dose < math.inf:
            raise ValueError(f"dose={self.dose} must be 0 or more, and finite")
        if self.suspected_by not in ("loss", "influence"):
            raise ValueError(f"suspected_by={self.suspected_by!r} does not exist; give loss or influence")
        if not 0 <= self.leave_out < 1:
            raise ValueError(f"leave_out={self.leave_out} must be a share from 0 to below 1")
        if self.leave_out and self.variant != "dosed":
            raise ValueError(f"leave_out={self.leave_out} needs weights that are not negative; give variant=dosed")

    @property
    def validation_size(self) -> int:
        """Return the number of examples in each validation set."""
        return self.validation or max(self.memory // 10, 1)


_M_co = TypeVar("_M_co", bound=MetaSPSettings, covariant=True)


class MetaSP(ERLate[_M_co]):
    """Weigh new and remembered examples by their fused influence on stability and plasticity.

    What differs from the authors' code: remembered examples are cropped and flipped anew at each rehearsal, and the
    sums of I* of what is stored are not reset when a task ends.
    """

    paper = "Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022 (Ours)"
    Settings = MetaSPSettings
    on_trusted: ClassVar[tuple[str, ...]] = (*ERLate.on_trusted, "validate_on_trusted")
    columns: ClassVar[tuple[str, ...]] = ("influence", "loss", "scored")  # sums of I* and ℓ, how often they were taken

    def __init__(self, learner: Learner, settings: _M_co) -> None:
        """Prepare the memory and the scores of the stream's own examples."""
        super().__init__(learner, settings)
        self.influence = torch.zeros(len(learner.stream.labels), device=learner.stream.labels.device)
        self.loss, self.scored = torch.zeros_like(self.influence), torch.zeros_like(self.influence)
        self.last_step: metasp.MetaSPStep | None = None  # for whoever watches

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Take a plain step in the early epochs, then MetaSP's."""
        if not self.rehearses(learner):
            return plain_step(learner, batch)
        kept, images, labels = self.rehearsed(learner)
        self.last_step = metasp.metasp_step(
            learner.model,
            learner.optimizer,
            rehearse(learner, batch, images, labels),
            *self.validation_sets(learner),
            variant=self.weights(learner, batch),
            pseudo_steps=self.settings.pseudo_steps,
        )
        ones = torch.ones_like(self.last_step.losses)
        scores = {"influence": self.last_step.fusion.influence, "loss": self.last_step.losses, "scored": ones}
        for name, values in scores.items():
            getattr(self, name)[batch.places] += values[: len(batch.places)]
            self.buffer.columns[name][kept.slots] += values[len(batch.places) :][: len(kept.slots)]
        return self.last_step.losses.mean()

    def validation_sets(self, learner: Learner) -> tuple[Examples, Examples]:
        """Draw V_old from the memory and V_new from the task, or both from what is trusted; without crops and flips.

        In the first task, where only trusted examples can stand for old ones, V_old comes from the task as well.
        """
        size, stream, draw = self.settings.validation_size, learner.stream, learner.draws.validation
        images, labels, normalise = stream.images, stream.labels, stream.augmentation.normalise
        on_trusted = self.settings.validate_on_trusted
        if on_trusted or len(self.buffer) == 0:
            earlier = torch.cat([task.trusted for task in stream.tasks[: max(learner.task_number, 1)]])
            at = shuffled(earlier, size, draw)[0]
            old = images[at], labels[at]
        else:
            stored = self.buffer.sample(size, draw)
            old = stored.images, stored.labels
        pool = learner.task.trusted if on_trusted else learner.task.train
        new = shuffled(pool, size, draw)[0]
        return (normalise(old[0]), old[1]), (normalise(images[new]), labels[new])

    def weights(self, learner: Learner, batch: Batch) -> Callable[..., metasp.Fusion]:
        """Return what turns the influences of ``batch`` and of what is rehearsed with it into weights."""
        s = self.settings
        chosen = {"gamma": s.gamma} | ({} if s.dose is None else {"dose": s.dose})
        variant: Callable[..., metasp.Fusion] = partial(_VARIANTS[s.variant], **chosen)
        if not (s.permuted or s.leave_out):
            return variant
        suspected = torch.isin(batch.places, self.suspects(learner))

        def changed(*influences_and_losses: Tensor) -> metasp.Fusion:
            fusion = variant(*influences_and_losses)
            weights = fusion.weights
            if s.permuted:
                weights = weights[torch.randperm(len(weights), generator=learner.draws.own).to(weights.device)]
            if suspected.any():
                kept = torch.cat([torch.where(suspected, 0, weights[: len(suspected)]), weights[len(suspected) :]])
                weights = kept * weights.sum() / kept.sum().clamp(min=torch.finfo(kept.dtype).tiny)
            return fusion._replace(weights=weights)

        return changed

    def candidates(self, learner: Learner) -> Tensor:
        """Return what of the task the memory may store: all but the suspects."""
        train = super().candidates(learner)
        return train[torch.isin(train, self.suspects(learner), invert=True)]

    def suspects(self, learner: Learner) -> Tensor:
        """Return the examples of the task that are left out now ``(k,)``, as positions in the stream's images.

        Among those that were scored: the share ``leave_out`` of the task with the highest means.
        """
        train = learner.task.train
        if not self.settings.leave_out:
            return train[:0]
        scored = train[self.scored[train] > 0]
        mean = getattr(self, self.settings.suspected_by)[scored] / self.scored[scored]
        return scored[mean.argsort(descending=True, stable=True)[: int(self.settings.leave_out * len(train))]]

    def remedies(self) -> list[str]:
        """Name the bounded weights where the others are in use."""
        bounded = self.settings.variant in ("official", "dosed")
        return [*super().remedies(), *([] if bounded else ["variant=official"])]

    def state_dict(self) -> dict[str, object]:
        """Return the memory and the scores."""
        return {**super().state_dict(), **{name: getattr(self, name) for name in self.columns}}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore the memory and the scores."""
        super().load_state_dict(state)
        for name in self.columns:
            getattr(self, name).copy_(state[name])
