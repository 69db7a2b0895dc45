"""The inventory: counts what is here without decoding it."""

import numpy as np
import pytest
from helpers.image_sets import make_tree, write_fashion, write_idx
from PIL import Image

from metasp_lite.images import inventory, sources
from metasp_lite.images.entries import Entry


def test_the_inventory_counts_without_decoding(home, tmp_path, monkeypatch):
    make_tree(home / "toy", count=3)
    (home / "toy/train/cat/9.png").write_bytes((home / "toy/train/cat/0.png").read_bytes()[:60])
    make_tree(home / "cifar10")
    (home / "cifar10/train/cat/notes.txt").write_text("x")
    (home / "papers").mkdir()
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("an image was decoded"))
    rows = {(row.name, row.source.split()[0]): (row.train, row.test, row.shape) for row in inventory()}
    assert rows == {
        ("fashion-mnist", "Debian's"): (10, 10, (1, 28, 28)),
        ("fashion-mnist", "bundled"): (10_000, 2_000, (1, 28, 28)),
        ("cifar10", str(home / "cifar10/train/cat/notes.txt")): (None, None, None),
        ("toy", "image"): (7, 6, (3, 6, 5)),
    }


def test_what_cannot_be_used_is_there_with_the_reason(tmp_path, monkeypatch):
    """A file of vectors in place of images, as ``load`` refuses it, too."""
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian")
    file = tmp_path / "debian" / "train-images-idx3-ubyte.gz"
    write_idx(file, np.zeros((10, 784), np.uint8))
    reason = f"{file} has shape (10, 784), expected (N, H, W); {sources.REINSTALL}"
    assert Entry("fashion-mnist", None, None, None, reason) in inventory()
