"""Sets that torchvision downloads, in ``downloads/`` of the data folder: fetch all of one or nothing, and read it.

All or nothing is here a whole folder, which torchvision fills and one renaming puts in its place; a single file is
written by ``metasp_lite.files``.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from metasp_lite import settings

_NETWORK_TIMEOUT = 30  # seconds without an answer
_ABANDONED_AFTER = 3600.0  # seconds without a write


class _Downloaded(Protocol):
    """What torchvision's data sets hold, which come without types."""

    data: torch.Tensor | np.ndarray  # MNIST and its kin (N, H, W), CIFAR (N, H, W, C)
    targets: Iterable[int]
    classes: Sequence[str]


def downloads_dir() -> Path:
    """Return the folder that torchvision downloads into."""
    return settings.data_dir() / "downloads"


def folder_of(kind: str) -> Path:
    """Return the folder that torchvision's data set class ``kind`` (``"CIFAR10"``) keeps its files in."""
    return downloads_dir() / getattr(_class(kind), "base_folder", kind)


def missing_files(kind: str) -> list[Path]:
    """Return the files of a downloaded set that are not there; a complete set gives an empty list."""
    cls = _class(kind)
    if hasattr(cls, "base_folder"):  # CIFAR
        names = [name for name, _ in (*cls.train_list, *cls.test_list)] + [cls.meta["filename"]]
    else:  # MNIST and its kin
        names = [f"raw/{Path(name).stem}" for name, _ in cls.resources]
    return [path for name in names if not (path := folder_of(kind) / name).is_file()]


def fetch(kind: str) -> Path:
    """Download a set, all or nothing, and return its folder; a complete set that is here already is kept.

    Raises:
        OSError: when it cannot be fetched or stored, with the reason; nothing of it is left behind.
    """
    target = folder_of(kind)
    if target.is_dir() and not missing_files(kind):
        return target
    try:
        downloads_dir().mkdir(exist_ok=True)
        _remove_abandoned(kind)
        with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=downloads_dir()) as partial, _network_timeout():
            for split in ("train", "test"):
                _dataset(kind, Path(partial), split, download=True)  # reads it too: whatever is damaged fails here
            if target.exists():
                shutil.rmtree(target)
            os.rename(Path(partial) / target.name, target)
    except Exception as error:  # torchvision lets through whatever urllib, gzip, tarfile and its own checks raise
        raise OSError(f"no {kind} could be downloaded into {downloads_dir()} ({_reason(error)})") from error
    return target


def _remove_abandoned(kind: str) -> None:
    """Remove what killed downloads of a set have left: folders in which nothing was written for an hour."""
    for partial in downloads_dir().glob(f".{kind}-*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            latest = max(path.stat().st_mtime for path in (partial, *partial.rglob("*")))
            if time.time() - latest >= _ABANDONED_AFTER:
                shutil.rmtree(partial)


def read_download(kind: str, split: str) -> tuple[torch.Tensor, list[int], tuple[str, ...]]:
    """Return the images (N, C, H, W) uint8, labels and class names of a downloaded set.

    Raises:
        ValueError: when files are missing or damaged; the message says how to download it again.
    """
    way_out = f"remove {folder_of(kind)} and download it again (python -m metasp_lite data download)"
    if missing := missing_files(kind):
        raise ValueError(f"{missing[0]} is missing from an incomplete download; {way_out}")
    try:
        dataset = _dataset(kind, downloads_dir(), split)
    except Exception as error:  # damaged files meet asserts, RuntimeErrors, EOFErrors ... in torchvision's readers
        raise ValueError(f"{folder_of(kind)} is damaged ({_reason(error)}); {way_out}") from error
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, list(map(int, dataset.targets)), tuple(dataset.classes)


def _class(kind: str) -> type[Any]:
    from torchvision import datasets  # here, because it takes a second that most uses can save

    return getattr(datasets, kind)


def _dataset(kind: str, root: Path, split: str, *, download: bool = False) -> _Downloaded:
    with warnings.catch_warnings():  # numpy 2.4.0 warns about how CIFAR's files of 2009 spell a dtype
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        return _class(kind)(root, train=split == "train", download=download)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Give up on a server that stays silent; torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
