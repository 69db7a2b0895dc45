"""Sources: all give the same pixels, in a known order; what is wrong with them is said, never guessed away."""

import gzip
import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_sets import forbid_decoding, make_tree, noise, save, write_fashion, write_idx
from PIL import Image
from torchvision import datasets

from metasp_lite import settings
from metasp_lite.images import sets, sources

REAL_DATA = os.environ.get("METASP_DATA")
REAL_DEBIAN = sources.DEBIAN_FASHION_MNIST
BUNDLED = settings.PROJECT_DATA_DIR / "bundled" / "fashion-mnist"


def test_debians_files_give_their_pixels_labels_and_class_names(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    pixels = write_fashion(tmp_path / "debian", 12)
    images = sources.load("fashion-mnist")
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
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    write_idx(tmp_path / "debian" / file, array)
    with pytest.raises(ValueError, match=rf"{file}.*apt-get install --reinstall dataset-fashion-mnist"):
        sources.load("fashion-mnist", source="debian")


def test_the_bundled_subset_holds_1000_and_200_images_of_each_class():
    for split, prefix, count in (("train", "train", 1000), ("test", "t10k", 200)):
        images = sources.load("fashion-mnist", split)
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
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", REAL_DEBIAN)
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
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", REAL_DEBIAN)
    ours = sets.first_per_class(sources.load("fashion-mnist", source="bundled"), 20)
    theirs = sets.first_per_class(sources.load("fashion-mnist", source="debian"), 20)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("damage", ["flip", "remove", "unlisted", "no sums"])
def test_a_damaged_bundled_file_is_named_with_the_way_out(tmp_path, monkeypatch, damage):
    folder = tmp_path / "project" / "bundled" / "fashion-mnist"
    shutil.copytree(BUNDLED, folder)
    monkeypatch.setattr(settings, "PROJECT_DATA_DIR", tmp_path / "project")
    assert len(sources.load("fashion-mnist", "test")) == 2000
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
        sources.load("fashion-mnist", "test")


# --- sources ----------------------------------------------------------------------------------------------------------


def test_sources_are_tried_in_the_documented_order(home, tmp_path, monkeypatch):
    assert sources.load("fashion-mnist").source.startswith("bundled")
    write_fashion(home / "downloads" / "packed")
    for file in (home / "downloads" / "packed").iterdir():
        target = home / "downloads" / "FashionMNIST" / "raw" / file.stem
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(file.read_bytes()))
    assert sources.load("fashion-mnist").source == "torchvision's download of FashionMNIST"
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    assert "Debian" in sources.load("fashion-mnist").source
    make_tree(home / "fashion-mnist", [f"c{i}" for i in range(10)], (28, 28), count=1)
    assert sources.load("fashion-mnist").source == "image folder METASP_DATA/fashion-mnist"
    for source, word in [
        ("folder", "image"),
        ("debian", "Debian"),
        ("download", "torchvision"),
        ("bundled", "bundled"),
    ]:
        assert word in sources.load("fashion-mnist", source=source).source


@pytest.mark.parametrize("profile", ["lite", "full"])
def test_a_subset_never_stands_in_for_all_where_all_is_asked_for(home, tmp_path, monkeypatch, profile):
    """In the full profile, or by ``whole``; by its name it is taken in both."""
    monkeypatch.setenv("METASP_PROFILE", profile)
    ways = r"data download fashion-mnist; or .*source=bundled"
    with pytest.raises(FileNotFoundError, match=f"all of fashion-mnist is asked for.*1,000 training.*{ways}") as error:
        sources.load("fashion-mnist", whole=profile == "lite")
    assert sources.RESTORE not in str(error.value)  # that leads to the subset again
    assert len(sources.load("fashion-mnist", source="bundled", whole=True)) == 10_000
    assert profile == "full" or len(sources.load("fashion-mnist")) == 10_000
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    assert "Debian" in sources.load("fashion-mnist", whole=True).source


def test_what_is_not_found_is_said_with_every_way_out(home):
    with pytest.raises(FileNotFoundError) as error:
        sources.load("cifar10")
    assert str(home / "cifar10") in str(error.value)
    assert str(home / "downloads") in str(error.value)
    assert "python -m metasp_lite data download cifar10" in str(error.value)
    assert "METASP_DATA" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"known sets: fashion-mnist, mnist, cifar10, cifar100, mini-imagenet"):
        sources.load("cifar11")
    with pytest.raises(FileNotFoundError, match=r"mini-imagenet/\{train,test\}/<class>"):
        sources.load("mini-imagenet")
    with pytest.raises(FileNotFoundError, match=r"no-debian.*apt-get install dataset-fashion-mnist"):
        sources.load("fashion-mnist", source="debian")
    with pytest.raises(FileNotFoundError, match="cifar10 has no source 'bundled'"):
        sources.load("cifar10", source="bundled")


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
        sources.load("fashion-mnist", **keywords)


def test_a_path_is_read_as_an_image_folder(tmp_path):
    make_tree(tmp_path / "elsewhere" / "toy")
    by_path, by_text = sources.load(tmp_path / "elsewhere" / "toy"), sources.load(str(tmp_path / "elsewhere" / "toy"))
    assert torch.equal(by_path.images, by_text.images)
    assert by_path.name == "toy"
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        sources.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="source='bundled'"):
        sources.load(tmp_path / "elsewhere" / "toy", source="bundled")


def test_every_source_resizes_to_the_same_pixels(home, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    pixels = write_fashion(tmp_path / "debian")
    for split in ("train", "test"):
        for i, image in enumerate(pixels):
            save(home / "fashion-mnist" / split / f"c{i}" / "0.png", image)
    folder, debian = (sources.load("fashion-mnist", source=source, size=11) for source in ("folder", "debian"))
    assert folder.images.shape == (10, 1, 11, 11)
    assert torch.equal(folder.images, debian.images)


def test_a_known_set_must_have_its_shape_and_number_of_classes(home):
    digits = [str(i) for i in range(10)]
    make_tree(home / "mnist", digits, (28, 28), count=1)
    assert sources.load("mnist", size=14).images.shape == (10, 1, 14, 14)
    make_tree(home / "cifar10", digits, (16, 16, 3), count=1)
    for size in (None, 16):  # size says what comes out, not what the files may be
        with pytest.raises(ValueError, match=r"cifar10/train/0/0\.png is 16×16 pixels, expected 32×32"):
            sources.load("cifar10", size=size)
    for size in (None, 8):
        sources.load(home / "cifar10", size=size)  # by its path it is any folder, and that leaves a cache: no way in
        with pytest.raises(ValueError, match="expected 32×32"):
            sources.load("cifar10", size=size)
    make_tree(home / "cifar100", digits, (32, 32, 3), count=1)
    with pytest.raises(ValueError, match=r"holds 10 class folders, but cifar100 has 100 classes"):
        sources.load("cifar100")


def test_mini_imagenet_takes_photographs_of_every_size_and_mode(home):
    make_tree(home / "mini-imagenet", [f"n{i:03}" for i in range(100)], (9, 7, 3), count=1)
    grey = noise(5, 6, 8)
    save(home / "mini-imagenet/train/n000/0.png", grey)
    images = sources.load("mini-imagenet", size=8).images
    assert images.shape == (100, 3, 8, 8)
    expected = np.asarray(Image.fromarray(grey).resize((8, 8), Image.Resampling.BILINEAR))
    assert all(np.array_equal(channel, expected) for channel in images[0].numpy())
    with pytest.raises(ValueError, match="size=N"):
        sources.load("mini-imagenet")


def test_mnist_has_the_same_class_names_from_every_source(home, mirror, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", datasets.FashionMNIST.mirrors)
    monkeypatch.setattr(datasets.MNIST, "resources", datasets.FashionMNIST.resources)
    sources.download("mnist")
    downloaded = sources.load("mnist")
    make_tree(home / "mnist", [str(i) for i in range(10)], (28, 28), count=1)
    assert sources.load("mnist").classes == downloaded.classes


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
    images = sources.load(name, split)
    full = name != "cifar100"
    histogram = torch.bincount(images.labels).tolist()
    if full or sum(histogram) == sum(REAL[name, split]):  # the whole of CIFAR-100 may lie there too
        assert histogram == REAL[name, split]
    assert images.images.shape[1:] == sources.KNOWN[name].shape
    reference = datasets.ImageFolder(Path(REAL_DATA) / name / split)
    assert len(images) == len(reference)
    assert images.classes == tuple(reference.classes)
    assert images.labels.tolist() == reference.targets
    for i in range(0, len(reference), 97):
        pixels = np.asarray(reference[i][0]).transpose(2, 0, 1)  # ImageFolder turns grey into three equal channels
        assert np.array_equal(np.broadcast_to(images.images[i].numpy(), pixels.shape), pixels)
    forbid_decoding(monkeypatch)
    assert torch.equal(sources.load(name, split).images, images.images)
