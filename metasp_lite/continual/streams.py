"""Data sets cut into tasks, one after another: what a continual learner trains on."""

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite import settings
from metasp_lite.continual.fields import check_types
from metasp_lite.continual.wrong_labels import check_wrong, wrong_labels
from metasp_lite.doors import Seed, typed
from metasp_lite.files import utf8
from metasp_lite.images import sets, sources
from metasp_lite.images.augment import Augmentation


@dataclass(frozen=True)
class StreamSettings:
    """How a named stream is made; every field can be changed from the command line."""

    data: str  # a data set's name, or a path to a folder of images
    classes_per_task: int
    per_class: int | None = None  # training images of each class; None for all
    size: int | None = None  # pixels; None for what the images have
    padding: int = 0
    flip: bool = False
    class_seed: int | None = None  # draws class order and subset; None for those of the data set
    source: str | None = None  # where the data set is taken from; None for the first place that has it
    held_out: int | None = None  # training images of each class to test on in place of the test images
    trusted: int = 0  # training images of each class set aside, with labels known to be right
    wrong: float = 0.0  # share of the other training labels that are wrong
    wrong_by: str = "chance"  # which: chance, the brightest of each task's first class, or lookalikes of another
    wrong_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse names and numbers that no stream has."""
        check_types(self)
        if not self.data.strip():
            raise ValueError("data is empty; name a data set or a folder of images, . for the current one")
        if not utf8(self.data):
            raise ValueError(f"data={self.data!r} is no UTF-8, and no result could name it; rename the folder")
        for name in ("classes_per_task", "per_class", "size", "held_out"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.padding < 0:
            raise ValueError(f"padding={self.padding} must be 0 pixels or more")
        check_wrong(self.wrong, self.wrong_by, self.wrong_seed, self.trusted)
        if self.wrong and self.classes_per_task < 2:
            raise ValueError(f"wrong={self.wrong}: a task of one class has no wrong label; give more classes_per_task")
        if self.class_seed is not None and not 0 <= self.class_seed < 2**63:
            raise ValueError(f"class_seed={self.class_seed} must be 0 or more, and below 2**63, or none")


@dataclass(frozen=True, eq=False)
class Task:
    """One task: its classes, and where its examples stand in the stream's images."""

    classes: range  # labels of its classes
    train: Tensor  # (n,) int64
    test: Tensor  # (m,) int64
    trusted: Tensor  # (k,) int64, beside those of train: their labels are known to be right


@dataclass(frozen=True, eq=False)
class Stream:
    """A sequence of tasks over one set of images, all on one device."""

    name: str
    images: Tensor  # (N, C, H, W) uint8, of all tasks
    labels: Tensor  # (N,) int64, numbered in the stream's order: task 0 has 0 … c−1; some may be wrong
    wrong: Tensor  # (N,) bool, which of them are
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]  # by label
    tasks: tuple[Task, ...]
    augmentation: Augmentation
    source: str
    made_from: StreamSettings | None = None  # by ``make``; None for one that ``split`` has cut from other images


@typed
def split(
    train: sets.ImageSet,
    test: sets.ImageSet,
    *,
    classes_per_task: int,
    per_class: int | None = None,
    seed: Seed | None = None,
    padding: int = 0,
    flip: bool = False,
    held_out: int | None = None,
    trusted: int = 0,
    wrong: float = 0.0,
    wrong_by: str = "chance",
    wrong_seed: Seed = 0,
    device: torch.device | str | None = None,
) -> Stream:
    """Cut a data set into tasks of ``classes_per_task`` classes.

    ``per_class`` training images of each class (None: all).  With a ``seed`` the order of the classes and the images of
    the subset are drawn; without one they are those of the data set.  With ``held_out`` the last so many training
    images of each class are not trained on but tested on, in place of ``test``: for choosing settings.

    ``trusted`` training images of each class are set aside (``Task.trusted``).  Of the others a share ``wrong`` of the
    labels is wrong, as ``wrong_labels`` makes them from ``wrong_by`` and ``wrong_seed``.

    Raises:
        ValueError: when the classes do not divide into tasks, when a class has fewer images, none to test or none left
            to train on, when train and test have other classes or images of another shape, or for a share, a kind, a
            seed or a count that cannot be.
    """
    count = len(train.classes)
    if classes_per_task < 1 or count % classes_per_task:
        divisors = [k for k in range(1, count + 1) if count % k == 0]
        raise ValueError(f"{count} classes do not divide into tasks of {classes_per_task}; give one of {divisors}")
    if train.classes != test.classes:
        raise ValueError(f"{train.name} has other classes in its test split; both splits need the same folders")
    _require_alike(train, test)
    check_wrong(wrong, wrong_by, wrong_seed, trusted)
    device = settings.device(device)
    draw = torch.Generator().manual_seed(seed) if seed is not None else None
    order = torch.arange(count) if draw is None else torch.randperm(count, generator=draw)
    if per_class is not None:
        train = _subset(train, per_class, draw)
    if held_out is not None:
        train, test = _parted(train, held_out)
    rank = order.argsort()
    labels, test_labels = rank[train.labels].to(device), rank[test.labels].to(device)
    tasks = []
    for first in range(0, count, classes_per_task):
        classes = range(first, first + classes_per_task)
        here, tested = (((y >= first) & (y < classes.stop)).nonzero()[:, 0] for y in (labels, test_labels))
        kept, aside = _set_aside(here, labels, classes, trusted)
        tasks.append(Task(classes, kept, tested, aside))
    images = train.images.to(device)
    given = labels
    if wrong > 0:
        given = wrong_labels(
            images, labels, [(task.classes, task.train) for task in tasks], wrong, wrong_by, wrong_seed
        )
    return Stream(
        name=train.name,
        images=images,
        labels=given,
        wrong=given != labels,
        test_images=test.images.to(device),
        test_labels=test_labels,
        classes=tuple(train.classes[int(k)] for k in order),
        tasks=tuple(tasks),
        augmentation=Augmentation.fitted(train.images, padding=padding, flip=flip),
        source=train.source,
    )


def _require_alike(train: sets.ImageSet, test: sets.ImageSet) -> None:
    """Refuse splits that no one network takes, and classes of which one of them has nothing."""
    (channels, *sides), (test_channels, *test_sides) = train.images.shape[1:], test.images.shape[1:]
    if channels != test_channels:
        found = f"{sets.coloured(channels)} training and {sets.coloured(test_channels)} test images"
        raise ValueError(f"{train.name} has {found}; store both splits in one mode")
    if sides != test_sides:
        found = f"training images of {sides[0]}×{sides[1]} pixels and test images of {test_sides[0]}×{test_sides[1]}"
        raise ValueError(f"{train.name} has {found}; give size=N (--set size=N) to make both N×N")
    if 0 in train.images.shape[1:]:
        raise ValueError(f"{train.name} has images of shape {(channels, *sides)}; give images that have pixels")
    for part, images in (("training", train), ("test", test)):
        counts = images.labels.bincount(minlength=len(images.classes))
        if missing := [name for name, count in zip(images.classes, counts, strict=True) if count == 0]:
            raise ValueError(f"class {missing[0]!r} of {images.name} has no {part} images; add some or leave it out")


def _set_aside(here: Tensor, labels: Tensor, classes: range, count: int) -> tuple[Tensor, Tensor]:
    """Return the examples ``here`` of a task without the first ``count`` of each class, and these."""
    firsts = [here[labels[here] == label][:count] for label in classes]
    for label, first in zip(classes, firsts, strict=True):
        if len(first) == int((labels[here] == label).sum()):
            raise ValueError(
                f"trusted={count} leaves none of the {len(first)} training images of a class; set fewer aside"
            )
    kept = torch.isin(here, torch.cat(firsts), invert=True)
    return here[kept], here[~kept]


def _parted(images: sets.ImageSet, count: int) -> tuple[sets.ImageSet, sets.ImageSet]:
    """Return the images without the last ``count`` of each class, and these."""
    if count < 1:
        raise ValueError(f"held_out={count} must be at least 1, or none")
    sizes = images.labels.bincount(minlength=len(images.classes)).tolist()
    for name, size in zip(images.classes, sizes, strict=True):
        if size <= count:
            raise ValueError(
                f"held_out={count} leaves none of the {size} training images of class {name!r}; hold out fewer"
            )
    parts = [images.places([label], size - count)[0] for label, size in enumerate(sizes)]
    rest = [images.places([label], count, skip=size - count)[0] for label, size in enumerate(sizes)]
    first, last = (images.take(torch.cat(places).sort().values) for places in (parts, rest))
    return first, last


def _subset(images: sets.ImageSet, per_class: int, draw: torch.Generator | None) -> sets.ImageSet:
    if draw is not None:
        images = images.take(torch.randperm(len(images), generator=draw))
    return sets.first_per_class(images, per_class)


@typed
def make(chosen: StreamSettings, *, device: torch.device | str | None = None) -> Stream:
    """Load the data set that ``chosen`` names and cut it into tasks, on ``device`` (None: where everything runs).

    Raises:
        FileNotFoundError: as ``images.load``.
        ValueError: as ``images.load`` and ``split``; for a device that is not here.
    """
    device = settings.device(device)
    whole = chosen.source is None  # a run on the bundled subset says so in its settings
    train, test = (
        sources.load(chosen.data, part, source=chosen.source, size=chosen.size, whole=whole)
        for part in ("train", "test")
    )
    stream = split(
        train,
        test,
        classes_per_task=chosen.classes_per_task,
        per_class=chosen.per_class,
        seed=chosen.class_seed,
        padding=chosen.padding,
        flip=chosen.flip,
        held_out=chosen.held_out,
        trusted=chosen.trusted,
        wrong=chosen.wrong,
        wrong_by=chosen.wrong_by,
        wrong_seed=chosen.wrong_seed,
        device=device,
    )
    return dataclasses.replace(stream, made_from=chosen)


def fingerprint(stream: Stream) -> dict[str, object]:
    """Tell a stream whose images or labels have changed under the same settings: source, shapes and SHA-256 sums."""
    parts = {"train": (stream.images, stream.labels), "test": (stream.test_images, stream.test_labels)}
    shapes = {f"{name} shape": list(images.shape) for name, (images, _) in parts.items()}
    return {"source": stream.source, **shapes, "sum": [_digest(*part) for part in parts.values()]}


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256()
    for part in (images, labels):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()
