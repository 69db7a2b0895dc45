"""The folder of a run: refused before anything is computed where it cannot serve, held by one process, left clean."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from metasp_lite import files
from metasp_lite.images import sources

RESULT, CHECKPOINT = "result.json", "checkpoint.pt"
_LOCK = "lock"


class InUseError(RuntimeError):
    """Another process trains in the same folder."""


def require_place(out: Path, data: str) -> None:
    """Make sure that a run on the images ``data`` can keep its files in the folder ``out``; leaves no trace.

    Raises:
        ValueError: when the one folder lies in the other, where the run's files would be taken for images.
        OSError: when ``out``, or a folder above it, is a file or cannot be written, or a folder lies in a file's place.
    """
    here = Path(os.path.realpath(out))
    for root in map(Path, map(os.path.realpath, sources.folders_of(data))):
        if here.is_relative_to(root) or root.is_relative_to(here):
            raise ValueError(f"{out} and the images in {root} lie in each other; give a folder beside them")
    for name in (RESULT, CHECKPOINT, _LOCK):
        files.require_writable(out / name)


@contextlib.contextmanager
def held(out: Path, wait: float = 0.0) -> Iterator[None]:
    """Make the folder of a run, and keep other processes from training in it for a while.

    Whatever ends the training before it has left anything to go on from, the folder is as it was.

    Raises:
        InUseError: when another process trains in it and has not stopped after ``wait`` seconds.
    """
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]  # the innermost first
    out.mkdir(parents=True, exist_ok=True)
    before, lock = {*os.listdir(out)}, filelock.FileLock(out / _LOCK, timeout=wait)
    try:
        lock.acquire()  # the system lifts it when the process dies, however
    except filelock.Timeout as error:
        raise InUseError(f"another process trains in {out}; wait for it, or give another folder") from error
    try:
        files.remove_leftovers(out)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            left = {*os.listdir(out)}
            if left <= before | {_LOCK} and (_LOCK not in before or left == {_LOCK}):
                (out / _LOCK).unlink()
            for folder in made:
                folder.rmdir()
        raise
    finally:
        lock.release()


def clear(out: Path) -> None:
    """Take away what a killed process has left half written in the folder of a run, and the folder if that was all."""
    if not out.is_dir():
        return
    with contextlib.suppress(InUseError, OSError):
        with held(out):
            if alone := os.listdir(out) == [_LOCK]:
                (out / _LOCK).unlink()
        if alone:
            out.rmdir()
