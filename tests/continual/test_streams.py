"""Streams: every class and example in exactly one task, labels that follow, and what a seed decides."""

import dataclasses
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.image_files import save, write_lists
from helpers.image_sets import link_first
from helpers.tiny_stream import make_folder, run_on
from PIL import Image
from torchvision import datasets

from metasp_lite.continual import presets
from metasp_lite.continual.streams import StreamSettings, make, split
from metasp_lite.continual.training import train
from metasp_lite.images import inventory, sources
from metasp_lite.images.sets import ImageSet

LITE, FULL = ({name: preset.stream for name, preset in presets.STREAMS[p].items()} for p in ("lite", "full"))
REAL_DATA = os.environ.get("METASP_DATA")
CPU = torch.device("cpu")


def numbered(classes, per_class, *, seed=0, shape=(1, 4, 5), first=0):
    """Images of which each says in its first pixels which one it is, in mixed order; class names are letters."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    images = torch.zeros(len(labels), *shape, dtype=torch.uint8)
    number = torch.arange(first, first + len(labels))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (number // 256).to(torch.uint8), (number % 256).to(torch.uint8)
    return ImageSet(images, labels, tuple("abcdefghijklmnopqrst"[:classes]), "letters", "made up")


def numbers(images):
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1]).tolist()


TRAIN, TEST = numbered(6, 40), numbered(6, 7, seed=1, first=1000)
SEEDS = pytest.mark.parametrize("seed", [None, 0, 5])
SIZES = pytest.mark.parametrize("classes_per_task", [1, 2, 3, 6])


@SEEDS
@SIZES
@pytest.mark.parametrize("per_class", [None, 40, 9, 1])
def test_every_class_and_every_example_is_in_exactly_one_task(seed, classes_per_task, per_class):
    stream = split(TRAIN, TEST, classes_per_task=classes_per_task, per_class=per_class, seed=seed, device=CPU)
    assert len(stream.tasks) == 6 // classes_per_task
    assert [label for task in stream.tasks for label in task.classes] == list(range(6))
    assert {len(task.classes) for task in stream.tasks} == {classes_per_task}
    for part, labels, each in (("train", stream.labels, per_class or 40), ("test", stream.test_labels, 7)):
        places = [place for task in stream.tasks for place in getattr(task, part).tolist()]
        assert sorted(places) == list(range(len(labels)))
        assert Counter(labels.tolist()) == dict.fromkeys(range(6), each)
        for task in stream.tasks:
            assert set(labels[getattr(task, part)].tolist()) == set(task.classes)


@SEEDS
@SIZES
def test_an_image_keeps_its_class_and_the_names_follow_the_labels(seed, classes_per_task):
    stream = split(TRAIN, TEST, classes_per_task=classes_per_task, per_class=11, seed=seed, device=CPU)
    assert sorted(stream.classes) == sorted(TRAIN.classes)
    for known, images, labels, first in (
        (TRAIN, stream.images, stream.labels, 0),
        (TEST, stream.test_images, stream.test_labels, 1000),
    ):
        was = dict(zip(numbers(known.images), known.labels.tolist(), strict=True))
        assert numbers(known.images) == list(range(first, first + len(known)))  # the fixture is what it says
        for number, label in zip(numbers(images), labels.tolist(), strict=True):
            assert stream.classes[label] == known.classes[was[number]]


def test_without_a_seed_order_and_subset_are_the_data_sets():
    stream = split(TRAIN, TEST, classes_per_task=2, per_class=3, device=CPU)
    assert stream.classes == TRAIN.classes
    seen, kept = Counter(), []  # the first three of each class, by a walk through the labels
    for number, label in enumerate(TRAIN.labels.tolist()):
        seen[label] += 1
        kept += [number] if seen[label] <= 3 else []
    assert numbers(stream.images) == kept
    assert stream.labels.tolist() == TRAIN.labels[kept].tolist()
    assert numbers(stream.test_images) == list(range(1000, 1042))


def test_a_seed_draws_order_and_subset_and_nothing_else_does():
    def made(seed, per_class=5):
        return split(TRAIN, TEST, classes_per_task=2, per_class=per_class, seed=seed, device=CPU)

    torch.manual_seed(1)
    first = made(3)
    torch.manual_seed(2)
    again = made(3)
    assert first.classes == again.classes
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    orders = {made(seed).classes for seed in range(20)}
    subsets = {tuple(sorted(numbers(made(seed).images))) for seed in range(20)}
    assert len(orders) > 15  # of 720 orders
    assert len(subsets) == 20
    assert made(3, per_class=None).classes == first.classes  # the size of the subset leaves the order alone
    assert torch.equal(made(3).test_images, TEST.images)


def test_every_example_may_be_in_the_subset_that_a_seed_draws():
    drawn = Counter(
        n
        for seed in range(60)
        for n in numbers(split(TRAIN, TEST, classes_per_task=2, per_class=10, seed=seed, device=CPU).images)
    )
    assert len(drawn) == 240  # each is missed by all 60 with probability (3/4)^60 = 3e-8
    assert max(drawn.values()) < 35  # Binomial(60, 1/4): above 34 with probability 3e-8


@pytest.mark.parametrize("classes_per_task", [-1, 0, 4, 5, 7, 12])
def test_classes_that_do_not_divide_are_refused_with_the_numbers_that_do(classes_per_task):
    with pytest.raises(
        ValueError, match=rf"6 classes do not divide into tasks of {classes_per_task}; give one of \[1, 2, 3, 6\]"
    ):
        split(TRAIN, TEST, classes_per_task=classes_per_task)


def test_a_test_split_of_other_classes_and_a_subset_too_large_are_refused():
    with pytest.raises(ValueError, match="letters has other classes in its test split"):
        split(TRAIN, numbered(5, 4), classes_per_task=2)
    with pytest.raises(ValueError, match=r"has 40 images, 41 were asked for"):
        split(TRAIN, TEST, classes_per_task=2, per_class=41)


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        ((3, 8, 8), (3, 16, 16), "training images of 8×8 pixels and test images of 16×16; give size=N"),
        ((1, 8, 6), (1, 6, 8), "training images of 8×6 pixels and test images of 6×8"),
        ((1, 4, 4), (3, 4, 4), "has grey training and coloured test images; store both splits in one mode"),
        ((4, 4, 4), (3, 4, 4), "has 4-channel training and coloured test images"),
        ((3, 4, 4), (1, 8, 8), "has coloured training and grey test images"),
    ],
)
def test_splits_that_no_one_network_takes_are_refused(train, test, sentence):
    with pytest.raises(ValueError, match=sentence):
        split(numbered(4, 3, shape=train), numbered(4, 2, shape=test), classes_per_task=2)


def test_a_class_without_training_or_test_images_is_refused():
    whole, part = numbered(4, 3), numbered(4, 3)
    part = part.take((part.labels != 2).nonzero()[:, 0])
    with pytest.raises(ValueError, match="class 'c' of letters has no test images; add some or leave it out"):
        split(whole, part, classes_per_task=2)
    with pytest.raises(ValueError, match="class 'c' of letters has no training images"):
        split(part, whole, classes_per_task=2)
    pixelless = numbered(4, 1)
    pixelless = ImageSet(pixelless.images[..., :0], pixelless.labels, pixelless.classes, "letters", "made up")
    with pytest.raises(ValueError, match="give images that have pixels"):
        split(pixelless, pixelless, classes_per_task=2)


def test_splits_of_two_sizes_train_once_a_size_is_given_and_leave_nothing_before(tmp_path):
    folder = make_folder(tmp_path / "images", classes=2)
    for path in (folder / "test").rglob("*.png"):
        Image.open(path).resize((16, 16)).save(path)
    with pytest.raises(ValueError, match="training images of 8×8 pixels and test images of 16×16"):
        train(run_on(folder, "fine-tune", epochs=1), tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!l]*"))
    assert train(run_on(folder, "fine-tune", epochs=1, size=8), tmp_path / "out")["steps"] == 5


def test_images_stay_bytes_and_are_normalised_by_the_training_images_of_the_stream():
    train = numbered(4, 10)
    train.images.copy_(
        torch.randint(0, 256, train.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    stream = split(train, numbered(4, 2), classes_per_task=2, per_class=3, seed=1, padding=2, flip=True, device=CPU)
    assert stream.images.dtype == stream.test_images.dtype == torch.uint8
    assert (stream.augmentation.padding, stream.augmentation.flip) == (2, True)
    pixels = stream.images.numpy().astype(float)  # of the subset, not of all
    assert stream.augmentation.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert stream.augmentation.std == pytest.approx((pixels.std(),), rel=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stream_lies_on_the_device_that_is_asked_for():
    stream = split(TRAIN, TEST, classes_per_task=2, seed=1, device=torch.device("cuda"))
    here = split(TRAIN, TEST, classes_per_task=2, seed=1, device=CPU)
    assert stream.images.is_cuda
    assert stream.tasks[0].train.is_cuda
    assert torch.equal(stream.images.cpu(), here.images)
    assert torch.equal(stream.labels.cpu(), here.labels)


# --- the named streams ------------------------------------------------------------------------------------------------

TASKS = {  # the protocol: tasks and classes in each
    "split-fashion-mnist": (5, 2),
    "split-mnist": (5, 2),
    "split-cifar10": (5, 2),
    "split-cifar100": (10, 10),
    "split-mini-imagenet": (5, 20),
}


def test_the_named_streams_have_the_tasks_of_the_protocol_and_one_shape_in_both_sizes():
    assert LITE.keys() == FULL.keys() == TASKS.keys()
    for name, (tasks, classes) in TASKS.items():
        for chosen in (LITE[name], FULL[name]):
            assert chosen.data == name.removeprefix("split-")
            assert chosen.classes_per_task == classes
            assert sources.KNOWN[chosen.data].classes == tasks * classes
    assert all(chosen.per_class is None for chosen in FULL.values())  # nothing is left out


@pytest.mark.parametrize("name", TASKS)
def test_a_named_stream_has_the_tasks_of_the_protocol(name, monkeypatch, tmp_path):
    """Of real images the first 20 of each class, and as many as the stream asks for are there to be read."""
    chosen, (tasks, classes) = LITE[name], TASKS[name]
    if name != "split-fashion-mnist":
        folder = Path(REAL_DATA or "/nowhere") / chosen.data
        if not folder.is_dir():
            pytest.skip(f"needs METASP_DATA with the image folder {folder.name}")
        monkeypatch.setenv("METASP_DATA", REAL_DATA)
        if (folder / "train").is_dir():  # and no lists
            assert all(len(os.listdir(each)) >= chosen.per_class for each in (folder / "train").iterdir())
            link_first(folder, tmp_path / "data" / chosen.data, train=20, test=2)
            monkeypatch.setenv("METASP_DATA", str(tmp_path / "data"))
            monkeypatch.setenv("METASP_CACHE", str(tmp_path / "cache"))
            chosen = dataclasses.replace(chosen, per_class=20)
    stream = make(chosen, device=CPU)
    assert [len(task.classes) for task in stream.tasks] == [classes] * tasks
    assert Counter(stream.labels.tolist()) == dict.fromkeys(range(tasks * classes), chosen.per_class)
    assert set(stream.test_labels.tolist()) == set(range(tasks * classes))
    size = chosen.size or 28
    assert stream.images.shape[2:] == stream.test_images.shape[2:] == (size, size)
    assert stream.images.shape[1] == (1 if "mnist" in name else 3)


# --- image folders and csv lists --------------------------------------------------------------------------------------


def test_any_image_folder_is_a_stream_with_the_classes_per_task_asked_for(home, tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee", "cat", "dog")):
            for i in range(count):
                save(tmp_path / "zoo" / part / name / f"{i}.png", (count, label, i))
    stream = make(StreamSettings(str(tmp_path / "zoo"), 2), device=CPU)
    assert [list(task.classes) for task in stream.tasks] == [[0, 1], [2, 3]]
    assert stream.classes == ("ant", "bee", "cat", "dog")
    reference = datasets.ImageFolder(tmp_path / "zoo" / "train")
    assert stream.labels.tolist() == reference.targets
    for i, (image, _) in enumerate(reference):
        assert np.array_equal(stream.images[i].permute(1, 2, 0).numpy(), np.asarray(image))
    assert [len(task.test) for task in stream.tasks] == [4, 4]
    one = make(StreamSettings(str(tmp_path / "zoo"), 1, per_class=2, size=4, class_seed=3), device=CPU)
    assert len(one.tasks) == 4
    assert one.images.shape == (8, 3, 4, 4)
    with pytest.raises(ValueError, match=r"4 classes do not divide into tasks of 3; give one of \[1, 2, 4\]"):
        make(StreamSettings(str(tmp_path / "zoo"), 3), device=CPU)


def test_mini_imagenets_lists_make_five_tasks_of_twenty_classes(home):
    root = home / "mini-imagenet"
    names = [f"n{label:08}" for label in range(100)]
    parts = {"train": names[36:], "val": names[:16], "test": names[16:36]}  # 64, 16 and 20 classes
    write_lists(root, {part: [name for name in chosen for _ in range(6)] for part, chosen in parts.items()}, (9, 7))
    stream = make(StreamSettings("mini-imagenet", 20, size=4), device=CPU)
    assert [(len(task.classes), len(task.train), len(task.test)) for task in stream.tasks] == [(20, 100, 20)] * 5
    assert stream.images.shape == (500, 3, 4, 4)
    assert stream.classes == tuple(names)
    row = next(row for row in inventory() if row.name == "mini-imagenet")
    assert (row.train, row.test) == (500, 100)
    (root / "val.csv").unlink()
    with pytest.raises(ValueError, match=r"holds 84 class folders, but mini-imagenet has 100 classes"):
        sources.load("mini-imagenet")


# --- held out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("per_class", "held_out"), [(None, 4), (11, 1), (5, 4)])
def test_what_is_held_out_is_tested_on_and_not_trained_on(seed, per_class, held_out):
    """The two parts together are the training images of the stream without it, and no test image is looked at."""

    def made(held_out):
        kinds = {"classes_per_task": 2, "per_class": per_class, "seed": seed, "held_out": held_out}
        return split(TRAIN, TEST, **kinds, device=CPU)

    whole, parted = made(None), made(held_out)
    assert parted.classes == whole.classes
    trained, tested = numbers(parted.images), numbers(parted.test_images)
    assert sorted([*trained, *tested]) == sorted(numbers(whole.images))
    counts = parted.test_labels.bincount().tolist()
    assert counts == [held_out] * len(whole.classes)
    for task in parted.tasks:
        assert set(parted.test_labels[task.test].tolist()) == set(task.classes)


@pytest.mark.parametrize("held_out", [0, -1, 40, 41])
def test_holding_out_everything_or_nothing_is_refused(held_out):
    with pytest.raises(ValueError, match=f"held_out={held_out}"):
        split(TRAIN, TEST, classes_per_task=2, held_out=held_out)


# --- wrong labels and trusted ones ------------------------------------------------------------------------------------


def spoiled(**changed):
    return split(TRAIN, TEST, **{"classes_per_task": 3, "device": CPU} | changed)


@SEEDS
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_a_share_of_each_class_gets_another_label_of_its_task_by_chance(seed, share):
    right, stream = spoiled(seed=seed), spoiled(seed=seed, wrong=share, wrong_seed=7)
    assert torch.equal(stream.images, right.images)
    assert torch.equal(stream.wrong, stream.labels != right.labels)
    assert torch.equal(stream.test_labels, right.test_labels)
    for task, other in zip(stream.tasks, right.tasks, strict=True):
        assert torch.equal(task.train, other.train)
        assert set(stream.labels[task.train].tolist()) <= set(task.classes)
        for label in task.classes:
            members = task.train[right.labels[task.train] == label]
            assert int(stream.wrong[members].sum()) == round(share * 40)
    again, other = (spoiled(seed=seed, wrong=share, wrong_seed=number).labels for number in (7, 8))
    assert torch.equal(again, stream.labels)
    assert torch.equal(other, stream.labels) == (share == 0)


def test_all_other_classes_of_the_task_are_equally_likely():
    """4,000 wrong labels of three classes: a chi-square test that fails a correct program one time in 10,000."""
    counts = torch.zeros(3, 3)
    for number in range(50):
        stream = spoiled(wrong=1.0, wrong_seed=number)
        for true, given in zip(spoiled().labels.tolist(), stream.labels.tolist(), strict=True):
            if true < 3:
                counts[true, given] += 1
    assert counts.diagonal().tolist() == [0, 0, 0]
    assert scipy.stats.chisquare(counts[~torch.eye(3, dtype=torch.bool)].tolist()).pvalue > 1e-4


def test_the_brightest_of_each_tasks_first_class_get_its_second():
    stream, right = spoiled(wrong=0.25, wrong_by="brightest"), spoiled()
    for task in stream.tasks:
        first, second, third = task.classes
        members = task.train[right.labels[task.train] == first]
        brightness = stream.images[members].double().mean(dim=(1, 2, 3))
        wrong = stream.wrong[members]
        assert int(wrong.sum()) == 10
        assert brightness[wrong].min() >= brightness[~wrong].max()
        assert set(stream.labels[members][wrong].tolist()) == {second}
        assert not stream.wrong[task.train[torch.isin(right.labels[task.train], torch.tensor([second, third]))]].any()


def test_lookalikes_get_the_class_whose_mean_image_is_nearest():
    stream, right = spoiled(wrong=0.25, wrong_by="lookalikes"), spoiled()
    pixels = stream.images.double().flatten(1).numpy()
    for task in stream.tasks:
        members = {label: task.train[right.labels[task.train] == label].numpy() for label in task.classes}
        means = {label: pixels[places].mean(axis=0) for label, places in members.items()}
        for label, places in members.items():
            far = {}
            for place in places:
                others = {
                    other: float(((pixels[place] - means[other]) ** 2).sum()) for other in means if other != label
                }
                nearest = min(others, key=others.__getitem__)
                far[int(place)] = others[nearest], nearest
            chosen = sorted(far, key=far.__getitem__)[:10]
            assert sorted(places[stream.wrong[places].numpy()].tolist()) == sorted(chosen)
            assert all(int(stream.labels[place]) == far[place][1] for place in chosen)


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_trusted_examples_stand_aside_and_are_right(wrong):
    stream, right = spoiled(trusted=4, wrong=wrong), spoiled()
    for task, whole in zip(stream.tasks, right.tasks, strict=True):
        assert sorted([*task.train.tolist(), *task.trusted.tolist()]) == whole.train.tolist()
        assert right.labels[task.trusted].bincount(minlength=6)[list(task.classes)].tolist() == [4, 4, 4]
        assert not stream.wrong[task.trusted].any()
        assert int(stream.wrong[task.train].sum()) == 3 * round(wrong * 36)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"wrong": 1.5}, r"wrong=1\.5 must be a share from 0 to 1"),
        ({"wrong": -0.1}, r"wrong=-0\.1 must be a share"),
        ({"wrong_by": "malice"}, "wrong_by='malice' does not exist; give one of: chance, brightest, lookalikes"),
        ({"wrong": 0.1, "classes_per_task": 1}, "a task of one class has no wrong label"),
        ({"trusted": -1}, "trusted=-1"),
        ({"wrong_seed": -1}, "wrong_seed=-1"),
    ],
)
def test_wrong_labels_that_cannot_be_made_are_refused(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        StreamSettings(**{"data": "fashion-mnist", "classes_per_task": 2} | changed)


def test_setting_everything_aside_is_refused():
    with pytest.raises(ValueError, match="trusted=40 leaves none of the 40 training images of a class"):
        spoiled(trusted=40)
