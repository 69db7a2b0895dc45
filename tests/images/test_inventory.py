"""The inventory: counts what is here without decoding it."""

import pytest
from helpers.image_sets import make_tree, write_fashion
from PIL import Image

from metasp_lite.images import inventory, sources


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
