"""MetaSP: each example of a batch weighted by what it does to old and new validation examples."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from metasp_lite.continual.learner import Batch, Learner, rehearse
from metasp_lite.continual.methods.base import features_of, plain_step
from metasp_lite.continual.methods.replay import ERLate, LateSettings
from metasp_lite.influence import metasp

_VARIANTS = {f.__name__: f for f in (metasp.official, metasp.relative, metasp.mixed, metasp.printed)}


@dataclass(frozen=True)
class MetaSPSettings(LateSettings):
    """MetaSP's settings; defaults of the paper, but for what a lite run shortens, and for the weights.

    Those that the paper prints, in each reading of their scale, are not bounded: an influence is a product of two
    gradients, so one steep batch can throw the network far enough for the next to be steeper still, until nothing is
    finite (notebook 06).
    """

    variant: str = "official"  # of the weights: official (the authors' code), relative, mixed or printed (eq. 12)
    pseudo_steps: int = 1  # K
    validation: int = 0  # examples in each validation set; 0 for |M|/10

    def __post_init__(self) -> None:
        """Refuse variants that do not exist."""
        super().__post_init__()
        if self.variant not in _VARIANTS:
            raise ValueError(f"variant={self.variant!r} does not exist; give one of: {', '.join(_VARIANTS)}")
        if self.pseudo_steps < 1 or self.validation < 0:
            raise ValueError(f"pseudo_steps={self.pseudo_steps} must be at least 1, validation={self.validation} 0")

    @property
    def validation_size(self) -> int:
        """Return the number of examples in each validation set."""
        return self.validation or max(self.memory // 10, 1)


class MetaSP(ERLate[MetaSPSettings]):
    """Weigh new and remembered examples by their fused influence on stability and plasticity.

    What differs from the authors' code: remembered examples are cropped and flipped anew at each rehearsal, and the
    sums of I* of what is stored are not reset when a task ends.
    """

    paper = "Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022 (Ours)"
    Settings = MetaSPSettings
    columns: ClassVar[tuple[str, ...]] = ("influence", "scored")  # sum of I* and how often it was taken

    def __init__(self, learner: Learner, settings: MetaSPSettings) -> None:
        """Prepare the memory and the scores of the stream's own examples."""
        super().__init__(learner, settings)
        self.influence = torch.zeros(len(learner.stream.labels), device=learner.stream.labels.device)
        self.scored = torch.zeros_like(self.influence)
        self.last_step: metasp.MetaSPStep | None = None  # for whoever watches

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Take a plain step in the early epochs, then MetaSP's."""
        if not self.rehearses(learner):
            return plain_step(learner, batch)
        kept = self.buffer.sample(self.settings.memory_batch, learner.generator)
        size, stream = self.settings.validation_size, learner.stream
        old = self.buffer.sample(size, learner.generator)
        new = learner.batches(learner.task.train, size)[0]
        self.last_step = metasp.metasp_step(
            learner.model,
            learner.optimizer,
            rehearse(learner, batch, kept.images, kept.labels),
            (stream.augmentation.normalise(old.images), old.labels),
            (stream.augmentation.normalise(stream.images[new]), stream.labels[new]),
            variant=_VARIANTS[self.settings.variant],
            pseudo_steps=self.settings.pseudo_steps,
        )
        fused = self.last_step.fusion.influence
        self.influence[batch.places] += fused[: len(batch.places)]
        self.scored[batch.places] += 1
        self.buffer.columns["influence"][kept.slots] += fused[len(batch.places) :]
        self.buffer.columns["scored"][kept.slots] += 1
        return self.last_step.losses.mean()

    def remedies(self) -> list[str]:
        """Name the bounded weights where the others are in use."""
        return [*super().remedies(), *(["variant=official"] if self.settings.variant != "official" else [])]

    def state_dict(self) -> dict[str, object]:
        """Return the memory and the scores."""
        return {**super().state_dict(), "influence": self.influence, "scored": self.scored}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore the memory and the scores."""
        super().load_state_dict(state)
        self.influence.copy_(state["influence"])
        self.scored.copy_(state["scored"])


class MetaSPRehSel(MetaSP):
    """MetaSP with rehearsal selection: store from each cluster what helps most, drop what harms most.

    The paper does not say what is clustered.  Here it is the features before the last layer; the authors' code takes
    the raw pixels.  That code ranks by mean I*, too, but then looks the ranks up in another order, so that what it
    stores is drawn at random; here the ranking counts.
    """

    paper = "Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022 (Ours+RehSel)"

    def harm_of_stored(self, slots: Tensor) -> Tensor:
        """Return the mean I* of the stored examples."""
        return mean_influence(self.buffer.columns["influence"][slots], self.buffer.columns["scored"][slots])

    def choose(self, learner: Learner, places: int) -> Tensor:
        """Choose one example of each of ``places`` clusters of the task's features (the paper does not say of what)."""
        train = learner.task.train
        features = features_of(learner, train)
        harm = mean_influence(self.influence[train], self.scored[train])
        return train[one_of_each_cluster(features, harm, places, learner.generator).to(train.device)]


def mean_influence(total: Tensor, count: Tensor) -> Tensor:
    """Mean I* of each example ``(n,)``; one that was never scored counts as neutral, 0, neither helpful nor harmful."""
    return total / count.clamp(min=1)


def one_of_each_cluster(features: Tensor, harm: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose ``count`` examples: of each k-means cluster of ``features (n, F)`` the one with the lowest ``harm (n,)``.

    Equal harm is decided by chance.  Where k-means finds fewer clusters (equal features), the rest is filled with the
    lowest harm of all.  Returns ``(count,)`` different positions, on the CPU.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    from sklearn.cluster import KMeans  # here, because it takes a second that all other methods can save
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(0, 2**31 - 1, (), generator=generator))
    # one thread: scikit-learn's are not torch's, and another number rounds differently
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters: see above
        clusters = KMeans(count, n_init=1, random_state=seed).fit_predict(features.double().cpu().numpy())
    shuffled = torch.randperm(len(harm), generator=generator)
    order = shuffled[harm.cpu()[shuffled].argsort(stable=True)].tolist()
    best: dict[int, int] = {}  # of each cluster
    for position in order:
        best.setdefault(int(clusters[position]), position)
    chosen = set(best.values())
    rest = [position for position in order if position not in chosen]
    return torch.tensor([*best.values(), *rest][:count])
