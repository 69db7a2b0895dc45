"""Made-up data sets and where they lie: image folders, idx files, and a server that torchvision downloads from."""

import functools
import gc
import gzip
import hashlib
import http.server
import os
import threading

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from metasp_lite import settings
from metasp_lite.images import cache, sources


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty data folder, an own cache, and no Debian package: each test adds what it needs."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("METASP_DATA", str(folder))
    monkeypatch.setenv("METASP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "no-debian")
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


def link_first(whole, root, *, train, test):
    """Link the first images of each class of an image folder below ``root``; whoever takes no more gets the same."""
    for split, count in (("train", train), ("test", test)):
        for folder in (whole / split).iterdir():
            (root / split / folder.name).mkdir(parents=True)
            for name in sorted(os.listdir(folder))[:count]:
                (root / split / folder.name / name).symlink_to(folder / name)


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
    folder = settings.cache_dir()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forbid_decoding(monkeypatch):
    def fail(path, decoding):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(cache, "decode", fail)


def as_torchvision_reads(root, split):
    folder = datasets.ImageFolder(root / split)
    pixels = [np.asarray(Image.open(path)) for path, _ in folder.samples]
    images = np.stack([p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in pixels])
    return images, [label for _, label in folder.samples], tuple(folder.classes)


def rgb(path, shape=(6, 5, 3)):
    save(path, noise(1, *shape))


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
