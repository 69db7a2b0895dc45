"""Checkpoints: the last one survives what can go wrong, and one that is damaged or another run's is refused."""

import errno
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_stream import SAME, Stopped, make_folder, run_on, stop_at
from PIL import Image

from metasp_lite.continual import checkpoint, training


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(folder, stream, tmp_path, monkeypatch):
    run, path = run_on(folder, "er"), tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        training.train(run, tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(3))
    before = path.read_bytes()

    def half(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", half)
        with pytest.raises(Stopped):
            training.train(run, tmp_path, stream=stream, checkpoint_seconds=0)
    assert path.read_bytes() == before
    (tmp_path / f".checkpoint.pt.{'0' * 32}.part").write_bytes(b"half")  # what a real kill would have left
    training.train(run, tmp_path, stream=stream, checkpoint_seconds=0)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "result.json"]


@pytest.fixture
def begun(folder, stream, tmp_path) -> Path:
    """The folder of a run that was stopped in its second task."""
    with pytest.raises(Stopped):
        training.train(run_on(folder, "er"), tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(5))
    return tmp_path


def full_disk(descriptor: int) -> None:
    os.ftruncate(descriptor, 100)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint(folder, stream, begun, tmp_path_factory, monkeypatch):
    run, before = run_on(folder, "er"), (begun / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt \(No space left on device\); make room"):
            training.train(run, begun, stream=stream, checkpoint_seconds=0)
    assert (begun / "checkpoint.pt").read_bytes() == before
    expected = training.train(run, tmp_path_factory.mktemp("whole"), stream=stream)
    found = training.train(run, begun, stream=stream)
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}


def test_a_file_that_the_system_refuses_to_let_grow_keeps_the_last_checkpoint(folder, stream, begun):
    """The kernel's own error in the middle of a write, by a limit on the size of files."""
    path, (soft, hard) = begun / "checkpoint.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        with pytest.raises(OSError, match="File too large"):
            training.train(run_on(folder, "er"), begun, stream=stream, checkpoint_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert not list(begun.glob(".*part"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "another program's"])
def test_a_damaged_checkpoint_is_refused_and_stays(damage, folder, stream, begun):
    path = begun / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
    else:
        torch.save({"weight": torch.zeros(3)}, path)
        content = bytearray(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged, or no checkpoint of this program; restore it"):
        training.train(run_on(folder, "er"), begun, stream=stream)
    assert path.read_bytes() == content


def test_a_checkpoint_cannot_run_code(folder, stream, begun, tmp_path):
    """A file with the right checksum, in whose pickle there is a call."""
    witness = tmp_path / "witness"

    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(witness),)

    checkpoint.save_checkpoint(begun / "checkpoint.pt", run_on(folder, "er").as_dict(), {"learner": Call()})
    assert pickle.dumps(Call())
    with pytest.raises(ValueError, match="is no checkpoint of this program"):
        training.train(run_on(folder, "er"), begun, stream=stream)
    assert not witness.exists()


def test_another_runs_checkpoint_is_refused_by_the_names_of_what_differs(folder, stream, begun, monkeypatch):
    before = (begun / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"another run \(recipe.lr is 0.02 there and 0.1 here; seed is 3 there and 4"):
        training.train(run_on(folder, "er", seed=4, lr=0.1), begun, stream=stream)
    with pytest.raises(ValueError, match=r"settings\.late_epochs is None there and 5 here"):
        training.train(run_on(folder, "er-late"), begun, stream=stream)
    monkeypatch.setattr(checkpoint, "_FORMAT", 2)
    with pytest.raises(ValueError, match="has format 1, this version reads 2"):
        training.train(run_on(folder, "er"), begun, stream=stream)
    assert (begun / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_does_not_go_on_with_other_images(tmp_path):
    """The settings are the same, but one picture was replaced meanwhile."""
    folder = make_folder(tmp_path / "images")
    run = run_on(folder, "er")
    with pytest.raises(Stopped):
        training.train(run, tmp_path / "out", checkpoint_seconds=0, watch=stop_at(2))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "train" / "class0" / "00.png")
    with pytest.raises(ValueError, match=r"images\.sum is "):
        training.train(run, tmp_path / "out")
