"""Image sets: what they refuse, and which images are chosen."""

import pytest
import torch
from helpers.image_sets import make_tree

from metasp_lite.continual.streams import split
from metasp_lite.course import problems
from metasp_lite.course.two_stages import Setup, TwoStages
from metasp_lite.images import sets, sources


def test_first_per_class_equals_a_walk_through_the_labels():
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0])
    images = sets.ImageSet(
        torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1), labels, ("a", "b", "c"), "toy", "x"
    )
    expected, seen = [], {}
    for slot, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= 2:
            expected.append(slot)
    subset = sets.first_per_class(images, 2)
    assert subset.images.flatten().tolist() == expected
    assert subset.labels.tolist() == labels[expected].tolist()
    assert len(subset) == 6
    assert subset.source == "x, of it the first 2 of each class"


def test_first_per_class_says_which_class_is_too_small(home):
    make_tree(home / "toy")
    images = sources.load("toy")
    with pytest.raises(ValueError, match=r"class 'cat' of toy has 2 images, 3 were asked for"):
        sets.first_per_class(images, 3)
    with pytest.raises(ValueError, match="count=0"):
        sets.first_per_class(images, 0)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1])),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([-1, 0])),
    ],
)
def test_an_image_set_refuses_tensors_that_break_its_rules(images, labels):
    with pytest.raises(ValueError, match=r"pass|must be in 0\.\.0"):
        sets.ImageSet(images, labels, ("only",), "toy", "x")


def walk(images, classes, per_class, skip=0):
    """The slots that are chosen, class after class, by a walk through the labels for each."""
    chosen = []
    for wanted in classes:
        mine = [slot for slot, label in enumerate(images.labels.tolist()) if label == wanted]
        chosen.append(mine[skip : skip + per_class])
    return chosen


@pytest.fixture(scope="module")
def mixed():
    """60 images of 5 classes in mixed order, each with a number of its own in its only pixel."""
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    pixels = torch.arange(60, dtype=torch.uint8).reshape(60, 1, 1, 1)
    return sets.ImageSet(pixels, labels, tuple("abcde"), "toy", "x")


@pytest.mark.parametrize("classes", [(0, 1, 2, 3, 4), (3, 1), (4,), range(5)], ids=str)
@pytest.mark.parametrize(("per_class", "skip"), [(1, 0), (4, 0), (3, 5), (100, 0), (100, 7), (1, 100)])
def test_places_are_those_of_a_walk_through_the_labels(mixed, classes, per_class, skip):
    places = mixed.places(classes, per_class, skip=skip)
    assert [mine.tolist() for mine in places] == walk(mixed, classes, per_class, skip)


@pytest.mark.parametrize("classes", [(0, 1, 2, 3, 4), (3, 1), (1, 3), (4,)], ids=str)
def test_only_some_classes_keep_their_order_and_are_numbered_anew(mixed, classes):
    slots = [slot for slot, label in enumerate(mixed.labels.tolist()) if label in classes]
    few = mixed.only(classes)
    assert few.images.flatten().tolist() == slots
    assert few.labels.tolist() == [classes.index(int(mixed.labels[slot])) for slot in slots]
    assert few.classes == tuple("abcde"[label] for label in classes)
    assert (few.name, few.source) == ("toy", "x")


def test_the_subsets_of_the_course_are_those_of_plain_loops():
    """Sneakers and boots of notebook 01; the two stages of notebook 08; a stream's subset, drawn and not."""
    whole = sources.load("fashion-mnist", source="bundled")
    first = [slot for mine in walk(whole, range(10), 7) for slot in mine]
    shoes = [slot for slot in sorted(first) if int(whole.labels[slot]) in (7, 9)]
    train = problems.shoes(train_per_class=7, test_per_class=1).train
    assert torch.equal(train.images, whole.images[shoes])
    assert train.labels.tolist() == [(7, 9).index(int(whole.labels[slot])) for slot in shoes]
    assert train.source == f"{whole.source}, of it the first 7 of each class"

    setup = Setup(first=(3, 0), second=(5, 1), first_per_class=4, second_per_class=4, skip=2, size=28)
    pretraining = TwoStages(setup).pretraining_images
    slots = [slot for mine in walk(whole, (3, 0), 4, skip=2) for slot in mine]
    assert torch.equal(pretraining.images, whole.images[slots])
    assert pretraining.labels.tolist() == [0] * 4 + [1] * 4
    assert pretraining.classes == ("Dress", "T-shirt/top")
    assert pretraining.source == whole.source

    test = sources.load("fashion-mnist", "test", source="bundled")
    for seed in (None, 3):
        stream = split(whole, test, classes_per_task=2, per_class=5, seed=seed, device=torch.device("cpu"))
        draw = torch.Generator().manual_seed(seed or 0)
        if seed is not None:
            torch.randperm(10, generator=draw)  # the order of the classes is drawn before
        shuffled = whole if seed is None else whole.take(torch.randperm(len(whole), generator=draw))
        slots = sorted(slot for mine in walk(shuffled, range(10), 5) for slot in mine)
        assert torch.equal(stream.images, shuffled.images[slots])
