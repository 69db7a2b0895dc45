"""The cache of decoded images: equal to the files, anew when they change, whole or not there."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.image_sets import as_torchvision_reads, cache_files, forbid_decoding, make_tree, noise, rgb

from metasp_lite import settings
from metasp_lite.images import cache, folder, sources


def test_many_jobs_and_threads_keep_the_order(home, monkeypatch):
    make_tree(home / "toy", count=11)
    monkeypatch.setattr(cache, "_FILES_PER_JOB", 3)
    monkeypatch.setattr(cache, "_usable_cpus", lambda: 2)
    assert np.array_equal(sources.load("toy").images.numpy(), as_torchvision_reads(home / "toy", "train")[0])


def test_the_second_load_comes_from_the_cache_and_is_equal(home, monkeypatch):
    make_tree(home / "toy")
    first = sources.load("toy")
    assert len(cache_files()) == 1
    forbid_decoding(monkeypatch)
    second = sources.load("toy")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_writing_to_loaded_images_changes_neither_cache_nor_other_loads(home):
    make_tree(home / "toy")
    first, untouched = sources.load("toy"), sources.load("toy").images.clone()
    first.images.zero_()
    assert torch.equal(sources.load("toy").images, untouched)


def test_a_changed_folder_is_decoded_anew_and_its_stale_cache_removed(home):
    root = make_tree(home / "toy")
    kept = sources.load("toy", "test"), sources.load("toy", size=3)
    sources.load("toy")
    others = set(cache_files())
    for change in (
        lambda: rgb(root / "train/dog/new.png"),
        lambda: (root / "train/dog/new.png").rename(root / "train/cat/new.png"),
        lambda: (root / "train/cat/0.png").unlink(),
        lambda: os.utime(root / "train/cat/1.png", ns=(1, 1)),
    ):
        before = set(cache_files())
        change()
        assert np.array_equal(sources.load("toy").images.numpy(), as_torchvision_reads(root, "train")[0])
        assert len(cache_files()) == 3
        assert len(before & set(cache_files())) == 2
        assert len(others & set(cache_files())) == 2  # the other split and the other size stay
    assert torch.equal(sources.load("toy", "test").images, kept[0].images)


def test_a_renamed_file_is_noticed_where_sizes_and_times_are_all_equal(home):
    root = make_tree(home / "toy")
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(400, b"x"))  # bytes after a PNG's end mark are no part of the image
        os.utime(path, ns=(7, 7))
    sources.load("toy")
    (root / "train/cat/0.png").rename(root / "train/cat/2.png")
    assert np.array_equal(sources.load("toy").images.numpy(), as_torchvision_reads(root, "train")[0])


def in_place(path, content):
    path.write_bytes(content)


def by_another_file(path, content):
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


def by_a_copy_with_its_times(path, content):
    new = path.parents[3] / "new.png"
    new.write_bytes(content)
    shutil.copystat(path, new)
    shutil.move(new, path)


@pytest.mark.parametrize("replace", [in_place, by_another_file, by_a_copy_with_its_times])
@pytest.mark.parametrize("name", ["train/cat/0.png", "train/dog/1.png"])
def test_a_replaced_file_of_equal_size_and_restored_time_is_seen(home, replace, name):
    root = make_tree(home / "toy")
    path, other = root / name, root / "other.png"
    rgb(other)
    size = max(path.stat().st_size, other.stat().st_size)
    path.write_bytes(path.read_bytes().ljust(size, b"x"))  # behind a PNG's end mark
    content = other.read_bytes().ljust(size, b"x")
    other.unlink()
    sources.load("toy")
    before = path.stat()
    time.sleep(0.02)  # the clock of file systems ticks every few milliseconds
    replace(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert np.array_equal(sources.load("toy").images.numpy(), as_torchvision_reads(root, "train")[0])


def test_files_that_change_while_they_are_read_are_refused(home, monkeypatch):
    root = make_tree(home / "toy")
    decode = cache.decode

    def with_a_change(path, decoding):
        if path.name == "1.png":
            rgb(root / "train/cat/0.png")
        return decode(path, decoding)

    monkeypatch.setattr(cache, "decode", with_a_change)
    with pytest.raises(OSError, match="toy/train have changed while they were read; load again"):
        sources.load("toy")
    monkeypatch.setattr(cache, "decode", decode)
    assert np.array_equal(sources.load("toy").images.numpy(), as_torchvision_reads(root, "train")[0])


def test_a_flipped_bit_of_the_cache_is_not_served(home):
    make_tree(home / "toy", shape=(3, 2, 3))
    expected = sources.load("toy").images.clone()
    (name,) = cache_files()
    path = settings.cache_dir() / name
    whole = path.read_bytes()
    for place in (*range(0, len(whole), 7), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"the cache \S+\.npy is damaged; it is built anew"):
            assert torch.equal(sources.load("toy").images, expected)
        assert path.read_bytes() == whole


def test_the_sum_is_cheap(tmp_path):
    """Of 6,000 images of 32×32, at most 0.2 s of processor time; the best of three, for the machine may be busy."""
    buffer = io.BytesIO()
    np.save(buffer, noise(0, 6000, 3, 32, 32))
    path = tmp_path / "a.npy"
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    listing = folder.Listing("train", tmp_path, ("a",), ("0.png",) * 6000, (0,) * 6000)
    seconds = []
    for _ in range(3):
        began = time.process_time()
        assert cache._open_cache(path, listing, folder.Decoding((3, 32, 32))) is not None
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.2


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


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("content", list(broken_caches()))
def test_a_damaged_cache_is_built_anew(home, content, summed):
    """Also where its sum is right, as another program's might be."""
    make_tree(home / "toy")
    expected = sources.load("toy").images.clone()
    (name,) = cache_files()
    path = settings.cache_dir() / name
    path.unlink()
    path.write_bytes(content + hashlib.sha256(content).digest() * summed)
    with pytest.warns(UserWarning, match=r"the cache \S+\.npy is damaged"):
        assert torch.equal(sources.load("toy").images, expected)
    assert cache_files() == [name]
    assert np.array_equal(np.load(path), expected.numpy())


def test_a_failure_halfway_leaves_nothing_behind(home, monkeypatch):
    make_tree(home / "toy", count=20)
    monkeypatch.setattr(cache, "_FILES_PER_JOB", 2)
    (home / "toy/train/dog/19.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dog/19\.png"):
        sources.load("toy")
    assert cache_files() == []


FULL_DISK = """
import resource
from metasp_lite.images import sources
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # no file may grow beyond 500 bytes: the header fits, pixels not
try:
    sources.load("toy")
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_said_clearly_and_leaves_nothing_behind(home, tmp_path):
    make_tree(home / "toy", shape=(20, 20, 3))
    done = subprocess.run([sys.executable, "-c", FULL_DISK], capture_output=True, text=True, check=True)
    assert f"cannot write the cache {tmp_path / 'cache'}" in done.stdout
    assert os.strerror(errno.EFBIG) in done.stdout
    assert "MiB: free space" in done.stdout
    assert cache_files() == []


def test_a_disk_too_small_for_the_cache_is_refused_before_a_byte_is_written(home, monkeypatch):
    make_tree(home / "toy", shape=(20, 20, 3))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    monkeypatch.setattr(cache.files, "replacing", None)
    with pytest.raises(OSError, match=r"cannot write the cache \S+ \(only 0\.0 MiB are free\); it needs 0\.0 MiB"):
        sources.load("toy")
    assert cache_files() == []


@pytest.mark.parametrize("inside", ["", "train", "train/cat", "cache/of/mine", "linked"])
def test_a_cache_among_the_images_is_refused_and_leaves_them_alone(home, monkeypatch, tmp_path, inside):
    root = make_tree(home / "toy")
    place = root / inside
    if inside == "linked":
        place = tmp_path / "linked"
        place.symlink_to(root / "train")
    before = sorted(root.rglob("*"))
    monkeypatch.setenv("METASP_CACHE", str(place))
    with pytest.raises(ValueError, match=r"lies inside the images of .*toy; set METASP_CACHE to another folder"):
        sources.load("toy")
    assert sorted(root.rglob("*")) == before


def test_a_cache_folder_that_cannot_be_made_is_said_clearly(home, tmp_path):
    make_tree(home / "toy")
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(OSError, match="cannot write the cache"):
        sources.load("toy")


LOAD_AT_ONCE = """
import sys, time
from pathlib import Path
from metasp_lite.images import cache, sources
decode = cache.decode
def slow(path, decoding):
    time.sleep(0.01)
    return decode(path, decoding)
cache.decode = slow
Path(sys.argv[1]).touch()
while not all(Path(p).exists() for p in sys.argv[1:]):
    time.sleep(0.01)
images = sources.load("toy").images
print(int(images.long().sum()))
"""


def test_two_processes_may_build_the_same_cache_at_once(home, tmp_path):
    make_tree(home / "toy", count=15)
    ready = [str(tmp_path / "ready-0"), str(tmp_path / "ready-1")]
    command = [sys.executable, "-c", LOAD_AT_ONCE]
    both = [subprocess.Popen([*command, *order], stdout=subprocess.PIPE, text=True) for order in (ready, ready[::-1])]
    sums = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sums == [int(as_torchvision_reads(home / "toy", "train")[0].astype(np.int64).sum())] * 2
    assert len(cache_files()) == 1


def test_only_abandoned_temporary_files_are_removed(home):
    make_tree(home / "toy")
    sources.load("toy")
    (name,) = cache_files()
    young, old = (settings.cache_dir() / f".{name}.{digit * 32}.part" for digit in "01")
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    rgb(home / "toy/train/dog/new.png")
    sources.load("toy")
    assert young.exists()
    assert not old.exists()
