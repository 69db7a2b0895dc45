"""Data: what is read is what the files hold, and whatever is wrong with them is said, never guessed away."""

import argparse
import errno
import functools
import gc
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from metasp_lite import settings
from metasp_lite.commands import data
from metasp_lite.images import cache, downloads, folder, idx, inventory, sets

REAL_DATA = os.environ.get("METASP_DATA")
REAL_DEBIAN = sets.DEBIAN_FASHION_MNIST
BUNDLED = settings.PROJECT_DATA_DIR / "bundled" / "fashion-mnist"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty data folder, an own cache, and no Debian package: each test adds what it needs."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("METASP_DATA", str(folder))
    monkeypatch.setattr(cache, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "no-debian")
    return folder


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


def make_tree(root, classes=("cat", "dog"), shape=(6, 5, 3), count=2):
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            for i in range(count):
                save(root / split / name / f"{i}.png", noise((len(split), label, i), *shape))
    return root


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_fashion(folder, count=10):
    """Fake Fashion-MNIST files; returns the pixels of the training split."""
    for seed, prefix in enumerate(("train", "t10k")):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", noise(seed, count, 28, 28))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return noise(0, count, 28, 28)


def cache_files():
    folder = cache.cache_dir()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forbid_decoding(monkeypatch):
    def fail(path, decoding):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(cache, "decode", fail)


# --- image sets -------------------------------------------------------------------------------------------------------


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
    images = sets.load("toy")
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


# --- idx files --------------------------------------------------------------------------------------------------------


def test_an_idx_file_written_by_hand_reads_as_its_numbers(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + b"\0\0\0\x02" + b"\0\0\0\x03" + bytes([1, 2, 3, 4, 5, 255])))
    assert idx.read(path, "fetch it").tolist() == [[1, 2, 3], [4, 5, 255]]
    assert idx.read_shape(path, "fetch it") == (2, 3)


def test_no_truncation_of_an_idx_file_goes_unnoticed(tmp_path):
    whole = tmp_path / "whole.gz"
    write_idx(whole, noise(0, 3, 4, 4))
    content = whole.read_bytes()
    path = tmp_path / "cut.gz"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.gz.*; fetch it again"):
            idx.read(path, "fetch it again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00\x00\x0d\x01" + b"\0\0\0\x01" + bytes(4), "magic number is 00000d01"),  # floats
        (b"\x01\x00\x08\x01" + b"\0\0\0\x01" + b"x", "magic number is 01000801"),
        (b"\x00\x00\x08\x01" + b"\0\0\0\x02" + b"x", "holds 1 bytes of data, its header says 2"),
        (b"\x00\x00\x08\x01" + b"\0\0\0\x02" + b"xyz", "holds 3 bytes of data, its header says 2"),
        (b"\x00\x00\x08", "unpack"),
    ],
)
def test_an_idx_file_with_a_wrong_header_or_size_is_named(tmp_path, content, reason):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=rf"a\.gz.*{reason}.*; fetch it"):
        idx.read(tmp_path / "a.gz", "fetch it")


def test_a_plain_or_absent_idx_file_is_named(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"\x00\x00\x08\x01\0\0\0\x01x")
    for name in ("a.gz", "b.gz"):
        with pytest.raises(ValueError, match=f"{name}.*; fetch it"):
            idx.read(tmp_path / name, "fetch it")


# --- Fashion-MNIST: Debian's files and the bundled subset -------------------------------------------------------------


def test_debians_files_give_their_pixels_labels_and_class_names(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    pixels = write_fashion(tmp_path / "debian", 12)
    images = sets.load("fashion-mnist")
    assert np.array_equal(images.images[:, 0].numpy(), pixels)
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert list(images.classes) == datasets.FashionMNIST.classes
    assert "Debian" in images.source


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("train-images-idx3-ubyte.gz", np.zeros((10, 28, 27), np.uint8)),
        ("train-images-idx3-ubyte.gz", np.zeros((10, 784), np.uint8)),
        ("train-labels-idx1-ubyte.gz", np.zeros(9, np.uint8)),
        ("train-labels-idx1-ubyte.gz", np.zeros((10, 1), np.uint8)),
        ("train-labels-idx1-ubyte.gz", np.full(10, 10, np.uint8)),
    ],
)
def test_idx_files_that_are_not_fashion_mnist_are_named(tmp_path, monkeypatch, file, array):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    write_idx(tmp_path / "debian" / file, array)
    with pytest.raises(ValueError, match=rf"{file}.*apt-get install --reinstall dataset-fashion-mnist"):
        sets.load("fashion-mnist", source="debian")


def test_the_bundled_subset_holds_1000_and_200_images_of_each_class():
    for split, prefix, count in (("train", "train", 1000), ("test", "t10k", 200)):
        images = sets.load("fashion-mnist", split)
        assert images.source == "bundled subset (1,000 training and 200 test images of each class)"
        assert images.images.shape == (10 * count, 1, 28, 28)
        assert torch.bincount(images.labels).tolist() == [count] * 10
        raw = gzip.decompress((BUNDLED / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
        assert images.images.numpy().tobytes() == raw
        assert (
            images.labels.numpy().astype(np.uint8).tobytes()
            == gzip.decompress((BUNDLED / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
        )


@pytest.mark.skipif(not REAL_DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_recipe_gives_the_bundled_images_and_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", REAL_DEBIAN)
    spec = importlib.util.spec_from_file_location("make", BUNDLED / "make.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.make(tmp_path)
    made = sorted(path.name for path in tmp_path.glob("*.gz"))
    assert made == sorted(path.name for path in BUNDLED.glob("*.gz"))
    for name in made:  # decoded: the compressed bytes depend on the zlib at hand
        assert gzip.decompress((tmp_path / name).read_bytes()) == gzip.decompress((BUNDLED / name).read_bytes())
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


@pytest.mark.skipif(not REAL_DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_bundled_and_debian_give_the_same_first_images(monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", REAL_DEBIAN)
    ours = sets.first_per_class(sets.load("fashion-mnist", source="bundled"), 20)
    theirs = sets.first_per_class(sets.load("fashion-mnist", source="debian"), 20)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("damage", ["flip", "remove", "unlisted", "no sums"])
def test_a_damaged_bundled_file_is_named_with_the_way_out(tmp_path, monkeypatch, damage):
    folder = tmp_path / "project" / "bundled" / "fashion-mnist"
    shutil.copytree(BUNDLED, folder)
    monkeypatch.setattr(settings, "PROJECT_DATA_DIR", tmp_path / "project")
    assert len(sets.load("fashion-mnist", "test")) == 2000
    labels, sums = folder / "t10k-labels-idx1-ubyte.gz", folder / "SHA256SUMS"
    if damage == "flip":  # a changed label, packed as a faultless file: only the sum tells
        content = bytearray(gzip.decompress(labels.read_bytes()))
        content[-1] ^= 1
        labels.write_bytes(gzip.compress(content))
    elif damage == "remove":
        labels.unlink()
    elif damage == "unlisted":
        sums.write_text(sums.read_text().replace(labels.name, "other.gz"))
    else:
        sums.unlink()
    name = sums.name if damage == "no sums" else labels.name
    with pytest.raises(ValueError, match=rf"{name}.*git checkout -- data/bundled"):
        sets.load("fashion-mnist", "test")


# --- sources ----------------------------------------------------------------------------------------------------------


def test_sources_are_tried_in_the_documented_order(home, tmp_path, monkeypatch):
    assert sets.load("fashion-mnist").source.startswith("bundled")
    write_fashion(home / "downloads" / "packed")
    for file in (home / "downloads" / "packed").iterdir():
        target = home / "downloads" / "FashionMNIST" / "raw" / file.stem
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(file.read_bytes()))
    assert sets.load("fashion-mnist").source == "torchvision's download of FashionMNIST"
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    assert "Debian" in sets.load("fashion-mnist").source
    make_tree(home / "fashion-mnist", [f"c{i}" for i in range(10)], (28, 28), count=1)
    assert sets.load("fashion-mnist").source == "image folder METASP_DATA/fashion-mnist"
    for source, word in [
        ("folder", "image"),
        ("debian", "Debian"),
        ("download", "torchvision"),
        ("bundled", "bundled"),
    ]:
        assert word in sets.load("fashion-mnist", source=source).source


def test_what_is_not_found_is_said_with_every_way_out(home):
    with pytest.raises(FileNotFoundError) as error:
        sets.load("cifar10")
    assert str(home / "cifar10") in str(error.value)
    assert str(home / "downloads") in str(error.value)
    assert "python -m metasp_lite data download cifar10" in str(error.value)
    assert "METASP_DATA" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"known sets: fashion-mnist, mnist, cifar10, cifar100, mini-imagenet"):
        sets.load("cifar11")
    with pytest.raises(FileNotFoundError, match=r"mini-imagenet/\{train,test\}/<class>"):
        sets.load("mini-imagenet")
    with pytest.raises(FileNotFoundError, match=r"no-debian.*apt-get install dataset-fashion-mnist"):
        sets.load("fashion-mnist", source="debian")
    with pytest.raises(FileNotFoundError, match="cifar10 has no source 'bundled'"):
        sets.load("cifar10", source="bundled")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"split": "valid"}, "split='valid'.*train, test"),
        ({"source": "web"}, "source='web'.*folder, debian, download, bundled"),
        ({"size": 0}, "size=0"),
    ],
)
def test_a_wrong_argument_is_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        sets.load("fashion-mnist", **keywords)


def test_a_path_is_read_as_an_image_folder(tmp_path):
    make_tree(tmp_path / "elsewhere" / "toy")
    by_path, by_text = sets.load(tmp_path / "elsewhere" / "toy"), sets.load(str(tmp_path / "elsewhere" / "toy"))
    assert torch.equal(by_path.images, by_text.images)
    assert by_path.name == "toy"
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        sets.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="source='bundled'"):
        sets.load(tmp_path / "elsewhere" / "toy", source="bundled")


# --- image folders ----------------------------------------------------------------------------------------------------


def as_torchvision_reads(root, split):
    folder = datasets.ImageFolder(root / split)
    pixels = [np.asarray(Image.open(path)) for path, _ in folder.samples]
    images = np.stack([p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in pixels])
    return images, [label for _, label in folder.samples], tuple(folder.classes)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_a_folder_reads_as_torchvisions_image_folder(home, shape):
    classes = ("b", "B", "10", "2", "ä", "a b")
    files = ("x.png", "X.PNG", "10.webp", "9.jpg", "a.jpeg")
    for seed, (name, file) in enumerate((name, file) for name in classes for file in files):
        for split in ("train", "test"):
            save(home / "toy" / split / name / file.lower(), noise(seed, *shape))
            (home / "toy" / split / name / file.lower()).rename(home / "toy" / split / name / file)
    if shape == (6, 5):  # WebP has no grey
        for path in (home / "toy").rglob("*.webp"):
            path.unlink()
    for split in ("train", "test"):
        images, labels, names = as_torchvision_reads(home / "toy", split)
        ours = sets.load("toy", split)
        assert np.array_equal(ours.images.numpy(), images)
        assert ours.labels.tolist() == labels
        assert ours.classes == names
        assert ours.source == "image folder METASP_DATA/toy"


def test_many_jobs_and_threads_keep_the_order(home, monkeypatch):
    make_tree(home / "toy", count=11)
    monkeypatch.setattr(cache, "_FILES_PER_JOB", 3)
    monkeypatch.setattr(cache, "_usable_cpus", lambda: 2)
    assert np.array_equal(sets.load("toy").images.numpy(), as_torchvision_reads(home / "toy", "train")[0])


def test_hidden_files_are_left_out(home):
    make_tree(home / "toy")
    before = sets.load("toy")
    for name in ("train/.DS_Store", "train/cat/.hidden.png", "train/.git/config"):
        path = home / "toy" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert torch.equal(sets.load("toy").images, before.images)


def rgb(path, shape=(6, 5, 3)):
    save(path, noise(1, *shape))


DEFECTS = {
    "stray file": (lambda root: (root / "train/notes.txt").write_text("x"), r"notes\.txt.*move it"),
    "foreign file": (lambda root: (root / "train/cat/notes.txt").write_text("x"), r"notes\.txt.*move it"),
    "inner folder": (lambda root: (root / "train/cat/inner.png").mkdir(), r"inner\.png.*move it"),
    "dead link": (lambda root: (root / "train/cat/link.png").symlink_to("nowhere.png"), r"link\.png.*move it"),
    "empty class": (
        lambda root: [p.unlink() for p in (root / "train/cat").iterdir()],
        r"train/cat holds no image.*add",
    ),
    "class in train only": (lambda root: rgb(root / "train/eel/0.png"), "'eel' is in only one of train and test.*add"),
    "class in test only": (lambda root: rgb(root / "test/eel/0.png"), "'eel' is in only one of train and test.*add"),
    "no classes": (lambda root: shutil.rmtree(root / "train") or (root / "train").mkdir(), "holds no class folder"),
    "no test split": (lambda root: shutil.rmtree(root / "test"), r"no folder .*toy/test; an image-folder tree is"),
    "no image": (lambda root: (root / "train/cat/x.png").write_text("x"), r"cat/x\.png cannot be decoded.*replace"),
    "no bytes": (lambda root: (root / "train/cat/x.png").touch(), r"cat/x\.png cannot be decoded.*replace"),
    "other size": (
        lambda root: rgb(root / "train/dog/x.png", (5, 6, 3)),
        r"x\.png is 5×6 pixels, expected 6×5.*size=N",
    ),
    "grey in RGB": (lambda root: rgb(root / "train/dog/x.png", (6, 5)), r"x\.png has mode L, expected RGB; convert"),
    "RGBA in RGB": (lambda root: rgb(root / "train/dog/x.png", (6, 5, 4)), r"x\.png has mode RGBA, expected RGB; conv"),
    "RGBA first": (
        lambda root: rgb(root / "train/cat/0.png", (6, 5, 4)),
        r"0\.png has mode RGBA, expected L or RGB; c",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_a_folder_is_named_with_the_way_out(home, defect):
    make_tree(home / "toy")
    cause, message = DEFECTS[defect]
    cause(home / "toy")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sets.load("toy")
    assert cache_files() == []


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_no_truncated_image_is_taken_for_whole(tmp_path, suffix):
    # Cutting bytes that carry no pixels (a PNG's end mark) may go unnoticed: then the pixels must be the right ones.
    path = tmp_path / f"whole.{suffix}"
    save(path, noise(0, 24, 24, 3))
    content, whole = path.read_bytes(), folder.decode(path, folder.Decoding())
    cut = tmp_path / f"cut.{suffix}"
    refused = 0
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        try:
            pixels = folder.decode(cut, folder.Decoding())
        except ValueError as error:
            refused += 1
            assert f"cut.{suffix} cannot be decoded" in str(error)  # noqa: PT017 - most lengths raise, not all
        else:
            assert np.array_equal(pixels, whole)
    assert refused >= len(content) - 20


def test_size_resizes_files_that_vary_as_pillow_does(home):
    for seed, shape in enumerate([(9, 12, 3), (30, 20, 3), (8, 8, 3)]):
        for split in ("train", "test"):
            save(home / "toy" / split / "a" / f"{seed}.png", noise(seed, *shape))
    expected = [
        np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        for path in sorted((home / "toy" / "train" / "a").iterdir())
    ]
    assert np.array_equal(sets.load("toy", size=8).images.numpy(), np.stack(expected))
    rgb(home / "toy/train/a/grey.png", (8, 8))
    with pytest.raises(ValueError, match=r"grey\.png has mode L, expected RGB"):
        sets.load("toy", size=8)


def test_every_source_resizes_to_the_same_pixels(home, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    pixels = write_fashion(tmp_path / "debian")
    for split in ("train", "test"):
        for i, image in enumerate(pixels):
            save(home / "fashion-mnist" / split / f"c{i}" / "0.png", image)
    folder, debian = (sets.load("fashion-mnist", source=source, size=11) for source in ("folder", "debian"))
    assert folder.images.shape == (10, 1, 11, 11)
    assert torch.equal(folder.images, debian.images)


def test_a_known_set_must_have_its_shape_and_number_of_classes(home):
    digits = [str(i) for i in range(10)]
    make_tree(home / "mnist", digits, (28, 28), count=1)
    assert sets.load("mnist", size=14).images.shape == (10, 1, 14, 14)
    make_tree(home / "cifar10", digits, (16, 16, 3), count=1)
    for size in (None, 16):  # size says what comes out, not what the files may be
        with pytest.raises(ValueError, match=r"cifar10/train/0/0\.png is 16×16 pixels, expected 32×32"):
            sets.load("cifar10", size=size)
    for size in (None, 8):
        sets.load(home / "cifar10", size=size)  # by its path it is any folder, and that leaves a cache: no way in
        with pytest.raises(ValueError, match="expected 32×32"):
            sets.load("cifar10", size=size)
    make_tree(home / "cifar100", digits, (32, 32, 3), count=1)
    with pytest.raises(ValueError, match=r"holds 10 class folders, but cifar100 has 100 classes"):
        sets.load("cifar100")


def test_mini_imagenet_takes_photographs_of_every_size_and_mode(home):
    make_tree(home / "mini-imagenet", [f"n{i:03}" for i in range(100)], (9, 7, 3), count=1)
    grey = noise(5, 6, 8)
    save(home / "mini-imagenet/train/n000/0.png", grey)
    images = sets.load("mini-imagenet", size=8).images
    assert images.shape == (100, 3, 8, 8)
    expected = np.asarray(Image.fromarray(grey).resize((8, 8), Image.Resampling.BILINEAR))
    assert all(np.array_equal(channel, expected) for channel in images[0].numpy())
    with pytest.raises(ValueError, match="size=N"):
        sets.load("mini-imagenet")


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_second_load_comes_from_the_cache_and_is_equal(home, monkeypatch):
    make_tree(home / "toy")
    first = sets.load("toy")
    assert len(cache_files()) == 1
    forbid_decoding(monkeypatch)
    second = sets.load("toy")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_writing_to_loaded_images_changes_neither_cache_nor_other_loads(home):
    make_tree(home / "toy")
    first, untouched = sets.load("toy"), sets.load("toy").images.clone()
    first.images.zero_()
    assert torch.equal(sets.load("toy").images, untouched)


def test_a_changed_folder_is_decoded_anew_and_its_stale_cache_removed(home):
    root = make_tree(home / "toy")
    kept = sets.load("toy", "test"), sets.load("toy", size=3)
    sets.load("toy")
    others = set(cache_files())
    for change in (
        lambda: rgb(root / "train/dog/new.png"),
        lambda: (root / "train/dog/new.png").rename(root / "train/cat/new.png"),
        lambda: (root / "train/cat/0.png").unlink(),
        lambda: os.utime(root / "train/cat/1.png", ns=(1, 1)),
    ):
        before = set(cache_files())
        change()
        assert np.array_equal(sets.load("toy").images.numpy(), as_torchvision_reads(root, "train")[0])
        assert len(cache_files()) == 3
        assert len(before & set(cache_files())) == 2
        assert len(others & set(cache_files())) == 2  # the other split and the other size stay
    assert torch.equal(sets.load("toy", "test").images, kept[0].images)


def test_a_renamed_file_is_noticed_where_sizes_and_times_are_all_equal(home):
    root = make_tree(home / "toy")
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(400, b"x"))  # bytes after a PNG's end mark are no part of the image
        os.utime(path, ns=(7, 7))
    sets.load("toy")
    (root / "train/cat/0.png").rename(root / "train/cat/2.png")
    assert np.array_equal(sets.load("toy").images.numpy(), as_torchvision_reads(root, "train")[0])


def broken_caches():
    good = io.BytesIO()
    np.save(good, noise(0, 4, 3, 6, 5))
    for name, array in {
        "of floats": np.zeros((4, 3, 6, 5), np.float32),
        "with an image too few": np.zeros((3, 3, 6, 5), np.uint8),
        "of other dimensions": np.zeros((4, 3, 6), np.uint8),
        "with two channels": np.zeros((4, 2, 6, 5), np.uint8),
        "in Fortran order": np.asfortranarray(noise(0, 4, 3, 6, 5)),
        "of objects": np.array([None] * 4),
    }.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield pytest.param(buffer.getvalue(), id=name)
    for name, content in {
        "empty": b"",
        "cut in its pixels": good.getvalue()[:-1],
        "cut in its header": good.getvalue()[:50],
        "longer than it says": good.getvalue() + b"x",
        "text": b"no cache",
        "zip": b"PK\x03\x04 no zip",
    }.items():
        yield pytest.param(content, id=name)


@pytest.mark.parametrize("content", list(broken_caches()))
def test_a_damaged_cache_is_built_anew(home, content):
    make_tree(home / "toy")
    expected = sets.load("toy").images.clone()
    (name,) = cache_files()
    path = cache.cache_dir() / name
    path.unlink()
    path.write_bytes(content)
    assert torch.equal(sets.load("toy").images, expected)
    assert cache_files() == [name]
    assert np.array_equal(np.load(path), expected.numpy())


def test_a_failure_halfway_leaves_nothing_behind(home, monkeypatch):
    make_tree(home / "toy", count=20)
    monkeypatch.setattr(cache, "_FILES_PER_JOB", 2)
    (home / "toy/train/dog/19.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dog/19\.png"):
        sets.load("toy")
    assert cache_files() == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from metasp_lite.images import cache, sets
cache.cache_dir = lambda: Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # no file may grow beyond 500 bytes: the header fits, pixels not
try:
    sets.load("toy")
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_said_clearly_and_leaves_nothing_behind(home, tmp_path):
    make_tree(home / "toy", shape=(20, 20, 3))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "cache"], capture_output=True, text=True, check=True
    )
    assert f"cannot write the cache {tmp_path / 'cache'}" in done.stdout
    assert os.strerror(errno.EFBIG) in done.stdout
    assert "MiB: free space" in done.stdout
    assert cache_files() == []


def test_a_cache_folder_that_cannot_be_made_is_said_clearly(home, tmp_path):
    make_tree(home / "toy")
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(OSError, match="cannot write the cache"):
        sets.load("toy")


LOAD_AT_ONCE = """
import sys, time
from pathlib import Path
from metasp_lite.images import cache, sets
cache.cache_dir = lambda: Path(sys.argv[1])
decode = folder.decode
def slow(path, decoding):
    time.sleep(0.01)
    return decode(path, decoding)
folder.decode = slow
Path(sys.argv[2]).touch()
while not all(Path(p).exists() for p in sys.argv[2:]):
    time.sleep(0.01)
images = sets.load("toy").images
print(int(images.long().sum()))
"""


def test_two_processes_may_build_the_same_cache_at_once(home, tmp_path):
    make_tree(home / "toy", count=15)
    ready = [str(tmp_path / "ready-0"), str(tmp_path / "ready-1")]
    command = [sys.executable, "-c", LOAD_AT_ONCE, str(tmp_path / "cache")]
    both = [subprocess.Popen([*command, *order], stdout=subprocess.PIPE, text=True) for order in (ready, ready[::-1])]
    sums = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sums == [int(as_torchvision_reads(home / "toy", "train")[0].astype(np.int64).sum())] * 2
    assert len(cache_files()) == 1


def test_only_abandoned_temporary_files_are_removed(home):
    make_tree(home / "toy")
    sets.load("toy")
    (name,) = cache_files()
    young, old = (cache.cache_dir() / f"{name.removesuffix('.npy')}.{age}.tmp" for age in ("young", "old"))
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    rgb(home / "toy/train/dog/new.png")
    sets.load("toy")
    assert young.exists()
    assert not old.exists()


# --- torchvision's downloads, from a server on this machine -----------------------------------------------------------


# A transfer that breaks off leaves its socket to the garbage collector, inside urllib; that is not ours to close.
dropped_sockets = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = False  # closing the server waits for the answers under way


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address on this machine that it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(QuietHandler, directory=folder)
    with QuietServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
    gc.collect()  # while the warning about dropped sockets is still switched off


@pytest.fixture
def mirror(served, monkeypatch):
    """A mirror of a tiny Fashion-MNIST, with the sums that torchvision checks."""
    folder, address = served
    write_fashion(folder)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(
        datasets.FashionMNIST, "resources", [(path.name, md5(path)) for path in sorted(folder.iterdir())]
    )
    return folder


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@dropped_sockets
def test_a_download_is_loaded_from_then_on(home, mirror):
    assert sets.load("fashion-mnist").source.startswith("bundled")  # load itself downloads nothing
    assert sets.download("fashion-mnist") == home / "downloads" / "FashionMNIST"
    assert [path.name for path in (home / "downloads").iterdir()] == ["FashionMNIST"]
    images = sets.load("fashion-mnist")
    assert images.source == "torchvision's download of FashionMNIST"
    assert np.array_equal(images.images[:, 0].numpy(), noise(0, 10, 28, 28))
    assert images.labels.tolist() == list(range(10))
    shutil.rmtree(mirror)
    sets.download("fashion-mnist")  # it is here: nothing is fetched


@dropped_sockets
@pytest.mark.parametrize("fault", ["no network", "file missing", "file cut", "not idx"])
def test_a_failed_download_is_one_sentence_and_leaves_nothing(home, mirror, monkeypatch, fault):
    last = mirror / datasets.FashionMNIST.resources[-1][0]
    if fault == "no network":
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    elif fault == "file missing":
        last.unlink()
    elif fault == "file cut":
        last.write_bytes(last.read_bytes()[:-3])
    else:
        last.write_bytes(gzip.compress(b"no idx"))
        sums = [(name, md5(mirror / name)) for name, _ in datasets.FashionMNIST.resources]
        monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    with pytest.raises(OSError, match=r"no FashionMNIST could be downloaded.*check the network.*image folder") as error:
        sets.download("fashion-mnist")
    assert "\n" not in str(error.value)
    assert list((home / "downloads").iterdir()) == []
    assert sets.load("fashion-mnist").source.startswith("bundled")


@dropped_sockets
def test_an_incomplete_or_damaged_download_is_named_and_can_be_repaired(home, mirror):
    raw = sets.download("fashion-mnist") / "raw"
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"FashionMNIST is damaged.*data download"):
        sets.load("fashion-mnist")
    labels.unlink()
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is missing.*data download"):
        sets.load("fashion-mnist")
    assert [row.train for row in inventory.inventory() if row.name == "fashion-mnist"] == [None, 10_000]
    sets.download("fashion-mnist")
    assert len(sets.load("fashion-mnist", source="download")) == 10


@dropped_sockets
@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "kind", "key"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_a_cifar_download_gives_its_pixels_channels_first(home, served, monkeypatch, name, kind, key):
    folder, address = served
    cls = getattr(datasets, kind)
    classes = sets.KNOWN[name].classes
    batches = [file for file, _ in (*cls.train_list, *cls.test_list)]
    with tarfile.open(folder / cls.filename, "w:gz") as archive:

        def add(file, content):
            # the real files spell a dtype's flags as 0 and 1, not False and True: numpy 2.4.0 warns about it
            packed = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
            member = tarfile.TarInfo(f"{cls.base_folder}/{file}")
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
            return [file, hashlib.md5(packed).hexdigest()]

        sums = [add(file, {"data": noise(i, 2, 3072), key: [i, 9 - i]}) for i, file in enumerate(batches)]
        meta = add(cls.meta["filename"], {cls.meta["key"]: [f"class {i}" for i in range(classes)]})
    monkeypatch.setattr(cls, "train_list", sums[:-1])
    monkeypatch.setattr(cls, "test_list", sums[-1:])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": meta[1]})
    monkeypatch.setattr(cls, "tgz_md5", None)
    monkeypatch.setattr(cls, "url", address + cls.filename)
    sets.download(name)
    assert [path.name for path in (home / "downloads").iterdir()] == [cls.base_folder]
    train = sets.load(name)
    pixels = np.concatenate([noise(i, 2, 3072) for i in range(len(batches) - 1)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), pixels)
    assert train.labels[:2].tolist() == [0, 9]
    assert len(train.classes) == classes
    assert len(sets.load(name, "test", size=8)) == 2


def test_what_torchvision_does_not_offer_says_how_to_provide_it(home):
    with pytest.raises(ValueError, match=rf"mini-imagenet cannot be downloaded.*image folder.*{home}"):
        sets.download("mini-imagenet")
    with pytest.raises(ValueError, match="toy cannot be downloaded"):
        sets.download("toy")


def test_a_data_folder_that_cannot_be_written_is_said_clearly(home, mirror):
    (home / "downloads").write_text("a file is in the way")
    with pytest.raises(OSError, match=r"could be downloaded into .*downloads"):
        sets.download("fashion-mnist")


def test_mnist_has_the_same_class_names_from_every_source(home, mirror, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", datasets.FashionMNIST.mirrors)
    monkeypatch.setattr(datasets.MNIST, "resources", datasets.FashionMNIST.resources)
    sets.download("mnist")
    downloaded = sets.load("mnist")
    make_tree(home / "mnist", [str(i) for i in range(10)], (28, 28), count=1)
    assert sets.load("mnist").classes == downloaded.classes


# --- what is here, and the command line -------------------------------------------------------------------------------


def run(*arguments):
    parser = argparse.ArgumentParser()
    data.add_command(parser.add_subparsers(required=True))
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)


def test_the_inventory_counts_without_decoding(home, tmp_path, monkeypatch):
    make_tree(home / "toy", count=3)
    (home / "toy/train/cat/9.png").write_bytes((home / "toy/train/cat/0.png").read_bytes()[:60])
    make_tree(home / "cifar10")
    (home / "cifar10/train/cat/notes.txt").write_text("x")
    (home / "papers").mkdir()
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("an image was decoded"))
    rows = {(row.name, row.source.split()[0]): (row.train, row.test, row.shape) for row in inventory.inventory()}
    assert rows == {
        ("fashion-mnist", "Debian's"): (10, 10, (1, 28, 28)),
        ("fashion-mnist", "bundled"): (10_000, 2_000, (1, 28, 28)),
        ("cifar10", str(home / "cifar10/train/cat/notes.txt")): (None, None, None),
        ("toy", "image"): (7, 6, (3, 6, 5)),
    }


def test_the_command_lists_what_is_here_and_how_to_get_the_rest(home, capsys):
    make_tree(home / "toy")
    assert run("data") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["set", "train", "test", "shape", "source"]
    assert lines[1].split()[:4] == ["fashion-mnist", "10,000", "2,000", "1×28×28"]
    assert lines[2].split() == ["toy", "4", "4", "3×6×5", "image", "folder", "METASP_DATA/toy"]
    assert len({line.index(word) for line, word in zip(lines, ("source", "bundled", "image"), strict=False)}) == 1
    assert any("cifar10 is not here" in line and "data download cifar10" in line for line in lines)
    assert any("mini-imagenet is not here" in line and "image folder" in line for line in lines)


@dropped_sockets
def test_the_command_downloads(home, mirror, capsys):
    assert run("data", "download", "fashion-mnist") == 0
    assert str(home / "downloads" / "FashionMNIST") in capsys.readouterr().out
    assert downloads.missing_files("FashionMNIST") == []


# --- real images ------------------------------------------------------------------------------------------------------

REAL = {
    ("cifar100", "train"): [100] * 100,
    ("cifar100", "test"): [20] * 100,
    ("cifar10", "test"): [1000] * 10,
    ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],  # LeCun's own test split
}


@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_images_read_whole_and_as_torchvision_reads_them(name, split, monkeypatch):
    if not REAL_DATA or not (Path(REAL_DATA) / name).is_dir():
        pytest.skip(f"needs METASP_DATA with the image folder {name}")
    monkeypatch.setenv("METASP_DATA", REAL_DATA)
    images = sets.load(name, split)
    full = name != "cifar100"
    histogram = torch.bincount(images.labels).tolist()
    if full or sum(histogram) == sum(REAL[name, split]):  # the whole of CIFAR-100 may lie there too
        assert histogram == REAL[name, split]
    assert images.images.shape[1:] == sets.KNOWN[name].shape
    reference = datasets.ImageFolder(Path(REAL_DATA) / name / split)
    assert len(images) == len(reference)
    assert images.classes == tuple(reference.classes)
    assert images.labels.tolist() == reference.targets
    for i in range(0, len(reference), 97):
        pixels = np.asarray(reference[i][0]).transpose(2, 0, 1)  # ImageFolder turns grey into three equal channels
        assert np.array_equal(np.broadcast_to(images.images[i].numpy(), pixels.shape), pixels)
    forbid_decoding(monkeypatch)
    assert torch.equal(sets.load(name, split).images, images.images)
