"""Rehearsal selection: which examples of a task the memory stores, and which stored ones give way to them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from metasp_lite.continual.buffer import balanced_choice
from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods.base import features_of
from metasp_lite.continual.methods.metasp import MetaSP, MetaSPSettings

_RANKINGS = {"store": ("influence", "chance", "centre", "loss"), "drop": ("influence", "chance", "loss")}
_CLUSTERS = ("features", "pixels", "class-features", "class", "none")


@dataclass(frozen=True)
class RehSelSettings(MetaSPSettings):
    """What is clustered and what ranks; the defaults are the paper's, the others take it apart.

    ``clusters`` of the task: k-means of its features before the last layer, of its raw pixels (the authors' code), of
    the features of each class by itself (class-features), its classes alone, or none.  Of each cluster that example is
    stored which ranks lowest by ``store``: mean I*, mean loss, chance, or the distance to the cluster's centre.  Stored
    examples give way from the highest by ``drop``, even over the classes.
    """

    clusters: str = "features"
    store: str = "influence"
    drop: str = "influence"

    def __post_init__(self) -> None:
        """Refuse what does not exist, and a centre where there are no clusters of vectors."""
        super().__post_init__()
        for name, known in {**_RANKINGS, "clusters": _CLUSTERS}.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} does not exist; give one of: {', '.join(known)}")
        if self.store == "centre" and self.clusters in ("class", "none"):
            raise ValueError(f"store=centre and clusters={self.clusters}: only k-means has centres; give features")


class MetaSPRehSel(MetaSP[RehSelSettings]):
    """MetaSP with rehearsal selection: store from each cluster what helps most, drop what harms most.

    The paper does not say what is clustered.  Here it is the features before the last layer; the authors' code takes
    the raw pixels.  That code ranks by mean I*, too, but then looks the ranks up in another order, so that what it
    stores is drawn at random (``clusters=none store=chance``); here the ranking counts.
    """

    paper = "Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022 (Ours+RehSel)"
    Settings = RehSelSettings

    def harm_of_stored(self, slots: Tensor) -> Tensor | None:
        """Return what ranks the stored examples for dropping, or None for chance."""
        columns = self.buffer.columns
        return self._ranking(self.settings.drop, lambda name: columns[name][slots])

    def choose(self, learner: Learner, places: int) -> Tensor:
        """Choose one example of each of ``places`` clusters: positions in the stream's images."""
        train, generator, clusters = self.candidates(learner), learner.draws.storing, self.settings.clusters
        labels = learner.stream.labels[train]
        scores = self._ranking(self.settings.store, lambda name: getattr(self, name)[train])
        if clusters == "class":
            return train[balanced_choice(labels, places, scores, generator)]
        if clusters == "none":
            return train[balanced_choice(torch.zeros_like(labels), places, scores, generator)]
        vectors = learner.stream.images[train].flatten(1) if clusters == "pixels" else features_of(learner, train)
        # chance ranks all alike, and the nearest to the centre are ranked where the centres are known
        harm = torch.zeros(len(train)) if self.settings.store == "chance" else scores
        groups, shares = [torch.arange(len(train), device=train.device)], [places]
        if clusters == "class-features":
            even = labels[balanced_choice(labels, places, None, generator)]
            groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
            shares = [int((even == labels[members[0]]).sum()) for members in groups]
        chosen = []
        for members, share in zip(groups, shares, strict=True):
            own = None if harm is None else harm[members.to(harm.device)]
            chosen.append(members[one_of_each_cluster(vectors[members], own, share, generator).to(members.device)])
        return train[torch.cat(chosen)]

    @staticmethod
    def _ranking(by: str, sums: Callable[[str], Tensor]) -> Tensor | None:
        """Return the mean of the score that ``by`` names, or None where it names none.

        An example that was never scored counts as neutral: an I* of 0, neither helpful nor harmful; the mean of all
        losses.
        """
        if by not in ("influence", "loss"):
            return None
        total, count = sums(by), sums("scored")
        neutral = 0.0 if by == "influence" else float(total.sum() / count.sum().clamp(min=1))
        return mean_score(total, count, neutral)


def mean_score(total: Tensor, count: Tensor, neutral: float = 0.0) -> Tensor:
    """Mean score of each example ``(n,)`` from its sum and how often it was taken; ``neutral`` where it never was."""
    return torch.where(count > 0, total / count.clamp(min=1), neutral)


def one_of_each_cluster(features: Tensor, harm: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """Choose ``count`` examples: of each k-means cluster of ``features (n, F)`` the one with the lowest ``harm (n,)``.

    Without a ``harm`` it is the one nearest to the cluster's centre.  Equal harm is decided by chance.  Where k-means
    finds fewer clusters (equal features), the rest is filled with the lowest harm of all.  Returns ``(count,)``
    different positions, on the CPU.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    from sklearn.cluster import KMeans  # here, because it takes a second that all other methods can save
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(0, 2**31 - 1, (), generator=generator))
    vectors = features.double().cpu().numpy()
    # one thread: scikit-learn's are not torch's, and another number rounds differently
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters: see above
        means = KMeans(count, n_init=1, random_state=seed).fit(vectors)
    if harm is None:
        harm = torch.from_numpy(vectors - means.cluster_centers_[means.labels_]).norm(dim=1)
    shuffled = torch.randperm(len(harm), generator=generator)
    order = shuffled[harm.cpu()[shuffled].argsort(stable=True)].tolist()
    best: dict[int, int] = {}  # of each cluster
    for position in order:
        best.setdefault(int(means.labels_[position]), position)
    chosen = set(best.values())
    rest = [position for position in order if position not in chosen]
    return torch.tensor([*best.values(), *rest][:count])
