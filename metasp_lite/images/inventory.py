"""Data sets as uint8 tensors with their classes, and where they come from: folders, Debian, torchvision, bundled."""

from dataclasses import dataclass
from pathlib import Path

from metasp_lite import settings
from metasp_lite.images import downloads, folder, idx
from metasp_lite.images.sets import (
    _REINSTALL,
    _RESTORE,
    BUNDLED_SOURCE,
    DEBIAN_FASHION_MNIST,
    KNOWN,
    _bundled_dir,
    _data_dir_in_words,
    _idx_files,
    _torchvision_class_of,
)


@dataclass(frozen=True)
class Row:
    """One set from one source; counts are None and ``source`` says why where it cannot be used.

    ``shape`` is the (C, H, W) of the images, in an unknown folder that of the first one.
    """

    name: str
    train: int | None
    test: int | None
    shape: folder.Shape | None
    source: str


def inventory() -> list[Row]:
    """Return what is here, without decoding images: for each name in the order in which ``load`` tries the sources."""
    rows = []
    folders = {path.name for path in settings.data_dir().iterdir() if _looks_like_a_set(path)}
    for name in (*KNOWN, *sorted(folders - set(KNOWN))):
        if name in folders:
            rows.append(_folder_row(name))
        if name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
            rows.append(_idx_row(DEBIAN_FASHION_MNIST, "Debian's package dataset-fashion-mnist", _REINSTALL))
        if (kind := _torchvision_class_of(name)) and downloads.folder(kind).is_dir():
            rows.append(_download_row(name, kind))
        if name == "fashion-mnist" and _bundled_dir().is_dir():
            rows.append(_idx_row(_bundled_dir(), BUNDLED_SOURCE, _RESTORE))
    return rows


def _looks_like_a_set(path: Path) -> bool:
    has_split = folder.has_lists(path) or any((path / split).is_dir() for split in folder.SPLITS)
    return path.is_dir() and not path.name.startswith(".") and (has_split or path.name in KNOWN)


def _folder_row(name: str) -> Row:
    root = settings.data_dir() / name
    try:
        train, test = (folder.list_images(root, split) for split in folder.SPLITS)
        shape = KNOWN[name].shape if name in KNOWN else folder.peek(train)
    except (OSError, ValueError) as error:
        return Row(name, None, None, None, str(error))
    return Row(name, len(train.files), len(test.files), shape, f"image folder {_data_dir_in_words()}/{name}")


def _idx_row(folder: Path, source: str, way_out: str) -> Row:
    try:
        train, test = (idx.read_shape(_idx_files(folder, split)[0], way_out) for split in folder.SPLITS)
    except ValueError as error:
        return Row("fashion-mnist", None, None, None, str(error))
    return Row("fashion-mnist", train[0], test[0], (1, *train[1:]), source)


def _download_row(name: str, kind: str) -> Row:
    if missing := downloads.missing_files(kind):
        return Row(name, None, None, None, f"{missing[0]} is missing; remove its folder and download the set again")
    return Row(name, *KNOWN[name].counts, KNOWN[name].shape, f"torchvision's download of {kind}")
