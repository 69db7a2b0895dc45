"""torchvision's downloads, from a server on this machine: a whole set or nothing."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from helpers.image_sets import dropped_sockets, md5, noise
from torchvision import datasets

from metasp_lite.images import inventory, sources


@dropped_sockets
def test_a_download_is_loaded_from_then_on(home, mirror):
    assert sources.load("fashion-mnist").source.startswith("bundled")  # load itself downloads nothing
    assert sources.download("fashion-mnist") == home / "downloads" / "FashionMNIST"
    assert [path.name for path in (home / "downloads").iterdir()] == ["FashionMNIST"]
    images = sources.load("fashion-mnist")
    assert images.source == "torchvision's download of FashionMNIST"
    assert np.array_equal(images.images[:, 0].numpy(), noise(0, 10, 28, 28))
    assert images.labels.tolist() == list(range(10))
    shutil.rmtree(mirror)
    sources.download("fashion-mnist")  # it is here: nothing is fetched


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
        sources.download("fashion-mnist")
    assert "\n" not in str(error.value)
    assert list((home / "downloads").iterdir()) == []
    assert sources.load("fashion-mnist").source.startswith("bundled")


@dropped_sockets
def test_an_incomplete_or_damaged_download_is_named_and_can_be_repaired(home, mirror):
    raw = sources.download("fashion-mnist") / "raw"
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"FashionMNIST is damaged.*data download"):
        sources.load("fashion-mnist")
    labels.unlink()
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is missing.*data download"):
        sources.load("fashion-mnist")
    assert [row.train for row in inventory() if row.name == "fashion-mnist"] == [None, 10_000]
    sources.download("fashion-mnist")
    assert len(sources.load("fashion-mnist", source="download")) == 10


@dropped_sockets
@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "kind", "key"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_a_cifar_download_gives_its_pixels_channels_first(home, served, monkeypatch, name, kind, key):
    folder, address = served
    cls = getattr(datasets, kind)
    classes = sources.KNOWN[name].classes
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
    sources.download(name)
    assert [path.name for path in (home / "downloads").iterdir()] == [cls.base_folder]
    train = sources.load(name)
    pixels = np.concatenate([noise(i, 2, 3072) for i in range(len(batches) - 1)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), pixels)
    assert train.labels[:2].tolist() == [0, 9]
    assert len(train.classes) == classes
    assert len(sources.load(name, "test", size=8)) == 2


@dropped_sockets
def test_what_a_killed_download_has_left_is_removed_by_the_next(home, mirror):
    old, young = home / "downloads" / ".FashionMNIST-old", home / "downloads" / ".FashionMNIST-young"
    for partial in (old, young):
        (partial / "raw").mkdir(parents=True)
        (partial / "raw" / "half.gz").touch()
    for path in (*old.rglob("*"), old):
        os.utime(path, (0, 0))
    sources.download("fashion-mnist")
    assert {path.name for path in (home / "downloads").iterdir()} == {young.name, "FashionMNIST"}


def test_what_torchvision_does_not_offer_says_how_to_provide_it(home):
    with pytest.raises(ValueError, match=rf"mini-imagenet cannot be downloaded.*image folder.*{home}"):
        sources.download("mini-imagenet")
    with pytest.raises(ValueError, match="toy cannot be downloaded"):
        sources.download("toy")


def test_a_data_folder_that_cannot_be_written_is_said_clearly(home, mirror):
    (home / "downloads").write_text("a file is in the way")
    with pytest.raises(OSError, match=r"could be downloaded into .*downloads"):
        sources.download("fashion-mnist")
