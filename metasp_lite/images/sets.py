"""Images with their labels, and which of them are chosen: so many of each class, in a fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metasp_lite.doors import Count, Whole, typed

Split = Literal["train", "test"]


@typed
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels, in a fixed order.

    ``images`` (N, C, H, W) uint8 in 0..255; ``labels`` (N,) int64, positions in ``classes``; ``source`` says in words
    where they came from.

    Raises:
        ValueError: when a shape, dtype or label breaks these rules.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    source: str

    def __post_init__(self) -> None:
        """Check the rules above."""
        if len(set(self.classes)) < len(self.classes) or not all(isinstance(each, str) for each in self.classes):
            raise ValueError(f"classes={self.classes[:20]} must be different texts")
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}; pass uint8 (N, C, H, W)")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; pass int64 ({len(self)},)")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            found = f"{int(self.labels.min())}..{int(self.labels.max())}"
            raise ValueError(f"labels of {self.name} span {found}; they must be in 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.images)

    @typed
    def take(self, index: Tensor) -> "ImageSet":
        """Return the images ``index (k,)``, in that order.

        Raises:
            ValueError: when the index is none of whole numbers, or names an image that is not there.
        """
        if index.dim() != 1 or index.dtype != torch.int64:
            raise ValueError(f"index is {index.dtype} {tuple(index.shape)}; pass int64 (k,)")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(f"index goes from {int(index.min())} to {int(index.max())}; pass 0..{len(self) - 1}")
        return replace(self, images=self.images[index], labels=self.labels[index])

    @typed
    def places(self, classes: Sequence[int], per_class: Count, *, skip: Whole = 0) -> list[Tensor]:
        """Return for each of ``classes`` where its first ``per_class`` images after ``skip`` stand, (k,) int64.

        Nothing is drawn at random.  Where a class has too few, k is below ``per_class``: refuse that, or take them.

        Raises:
            ValueError: for a class that is not there.
        """
        self._require_classes(classes)
        return [(self.labels == label).nonzero()[skip : skip + per_class, 0] for label in classes]

    @typed
    def only(self, classes: Sequence[int]) -> "ImageSet":
        """Return the images of ``classes`` alone, in the order they have here, labelled by position in ``classes``.

        Raises:
            ValueError: when a class is not there, or is given twice.
        """
        self._require_classes(classes)
        position = torch.full((len(self.classes),), -1, device=self.labels.device)
        position[list(classes)] = torch.arange(len(classes), device=position.device)
        kept = self.take((position[self.labels] >= 0).nonzero()[:, 0])
        return replace(kept, labels=position[kept.labels], classes=tuple(self.classes[label] for label in classes))

    def _require_classes(self, classes: Sequence[object]) -> None:
        known = range(len(self.classes))
        odd = [each for each in classes if type(each) is bool or not isinstance(each, int) or each not in known]
        if odd or len(set(classes)) < len(classes) or len(classes) == 0:
            raise ValueError(f"classes={list(classes)}: give one or more different ones of 0..{len(self.classes) - 1}")


def coloured(channels: int | None) -> str:
    """Say what images of so many channels are."""
    return {1: "grey", 3: "coloured"}.get(channels or 0, f"{channels}-channel")


@typed
def first_per_class(images: ImageSet, count: int) -> ImageSet:
    """Return the first ``count`` images of each class, in the order they have in ``images``.

    Nothing is drawn at random: every source of a set gives the same images.

    Raises:
        ValueError: when ``count`` is below 1 or a class has fewer images; the message says how many it has.
    """
    if count < 1:
        raise ValueError(f"count={count} images of each class; pass at least 1")
    places = images.places(range(len(images.classes)), count)
    for name, mine in zip(images.classes, places, strict=True):
        if len(mine) < count:
            raise ValueError(f"class {name!r} of {images.name} has {len(mine)} images, {count} were asked for")
    chosen = images.take(torch.cat(places).sort().values)
    return replace(chosen, source=f"{images.source}, of it the first {count:,} of each class")
