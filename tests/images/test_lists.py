"""Csv lists beside a folder of images: which splits they make, and what is refused."""

import pytest
import torch
from helpers.image_files import save, write_lists

from metasp_lite.images import cache, sources


def few_shot(root, per_class=12, train=4, val=1, test=2):
    """Lists as Ravi and Larochelle's: no class is in two of them."""
    names = iter("gfedcba")
    return write_lists(
        root,
        {
            part: [name for name in [next(names) for _ in range(count)] for _ in range(per_class)]
            for part, count in (("train", train), ("val", val), ("test", test))
        },
    )


@pytest.mark.parametrize("per_class", [12, 6, 2, 7])
def test_few_shot_lists_are_joined_and_the_last_sixth_of_each_class_is_for_testing(home, per_class, monkeypatch):
    pixels = few_shot(home / "toy", per_class)
    everything = dict(
        zip("gfedcba", torch.stack([one for part in pixels.values() for one in part]).split(per_class), strict=True)
    )
    train, test = sources.load("toy", "train"), sources.load("toy", "test")
    assert train.classes == test.classes == tuple("abcdefg")
    first = {12: 10, 6: 5, 2: 1, 7: 5}[per_class]
    for label, name in enumerate("abcdefg"):
        assert torch.equal(train.images[train.labels == label], everything[name][:first])
        assert torch.equal(test.images[test.labels == label], everything[name][first:])
    monkeypatch.setattr(cache, "decode", None)  # from here on the cache, of which each split has its own
    assert torch.equal(sources.load("toy", "train").images, train.images)
    assert torch.equal(sources.load("toy", "test").images, test.images)


def test_lists_with_the_same_classes_are_the_splits(home):
    root = home / "toy"
    pixels = write_lists(root, {"train": list("abbac"), "val": list("cab"), "test": list("bca")})
    train, test = sources.load("toy", "train"), sources.load("toy", "test")
    assert train.labels.tolist() == [0, 0, 1, 1, 2]
    assert torch.equal(train.images, torch.stack([pixels["train"][i] for i in (0, 3, 1, 2, 4)]))
    assert torch.equal(test.images, torch.stack([pixels["test"][i] for i in (2, 0, 1)]))
    (root / "val.csv").unlink()
    assert torch.equal(sources.load("toy", "train").images, train.images)


def test_an_absent_mini_imagenet_is_said_with_both_layouts(home):
    with pytest.raises(
        FileNotFoundError, match=r"mini-imagenet/\{train,test\}.* or mini-imagenet/images/ with train.csv, val"
    ):
        sources.load("mini-imagenet")


def edited(name, change):
    return lambda root: (root / name).write_text(change((root / name).read_text()))


DEFECTS = {
    "no test list": (lambda root: (root / "test.csv").unlink(), "no file .*test.csv; beside images/ the lists are"),
    "no images": (lambda root: (root / "images").rename(root / "elsewhere"), "no folder .*images"),
    "a file that is not there": (
        lambda root: next((root / "images").glob("a*")).unlink(),
        r"images/a.*png is in a csv list but not there; add it or remove its line",
    ),
    "a path out of the folder": (edited("test.csv", lambda text: text + "../x.png,a\n"), "in a csv list but not there"),
    "no header": (edited("val.csv", lambda text: text.split("\n", 1)[1]), "must begin with the line filename,label"),
    "nothing": (edited("val.csv", lambda text: ""), "must begin with the line filename,label"),
    "a header alone": (edited("val.csv", lambda text: "filename,label\n"), "list images below it"),
    "half a line": (edited("test.csv", lambda text: text + "x.png\n"), "the line 'x.png' in place of"),
    "no label": (edited("test.csv", lambda text: text + "x.png,\n"), "the line 'x.png,' in place of"),
    "an image in two lists": (
        edited("val.csv", lambda text: text + "g00000.png,g\n"),
        "name g00000.png 2 times; an image belongs to one split",
    ),
    "some classes shared": (
        lambda root: (save(root / "images" / "x.png", 1), edited("test.csv", lambda text: text + "x.png,g\n")(root)),
        "share some classes but not all; make them share all or none",
    ),
    "a single image": (
        lambda root: (save(root / "images" / "x.png", 1), edited("test.csv", lambda text: text + "x.png,z\n")(root)),
        "class 'z' has a single image",
    ),
    "not text": (lambda root: (root / "val.csv").write_bytes(b"\xff\xfe\x00g"), "cannot be read as csv"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_lists_is_named_with_the_way_out(home, defect):
    few_shot(home / "toy")
    change, message = DEFECTS[defect]
    change(home / "toy")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.load("toy")


def test_class_folders_come_before_lists(home):
    few_shot(home / "toy")
    for part in ("train", "test"):
        save(home / "toy" / part / "only" / "1.png", 1)
    assert sources.load("toy").classes == ("only",)


def test_a_changed_list_is_read_anew(home):
    root = home / "toy"
    write_lists(root, {"train": list("aabb"), "test": list("ab")})
    before = sources.load("toy")
    rows = (root / "train.csv").read_text().split("\n")
    (root / "train.csv").write_text("\n".join([rows[0], *reversed(rows[1:-1])]))
    after = sources.load("toy")
    assert after.labels.tolist() == before.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(after.images, before.images[[1, 0, 3, 2]])
