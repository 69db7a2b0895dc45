"""What data sets are here, from where, and how many images: counted without decoding any."""

from dataclasses import dataclass
from pathlib import Path

from metasp_lite import settings
from metasp_lite.images import downloads, folder, idx, sources
from metasp_lite.images.sources import KNOWN


@dataclass(frozen=True)
class Entry:
    """One set from one source; counts are None and ``source`` says why where it cannot be used.

    ``shape`` is the (C, H, W) of the images, in an unknown folder that of the first one.
    """

    name: str
    train: int | None
    test: int | None
    shape: folder.Shape | None
    source: str


def inventory() -> list[Entry]:
    """Return what is here, without decoding images: for each name in the order in which ``load`` tries the sources."""
    entries = []
    folders = {path.name for path in settings.data_dir().iterdir() if _looks_like_a_set(path)}
    for name in (*KNOWN, *sorted(folders - set(KNOWN))):
        if name in folders:
            entries.append(_of_folder(name))
        if name == "fashion-mnist" and sources.DEBIAN_FASHION_MNIST.is_dir():
            source = "Debian's package dataset-fashion-mnist"
            entries.append(_of_idx_files(sources.DEBIAN_FASHION_MNIST, source, sources.REINSTALL))
        if (kind := sources.torchvision_class_of(name)) and downloads.folder_of(kind).is_dir():
            entries.append(_of_download(name, kind))
        if name == "fashion-mnist" and sources.bundled_dir().is_dir():
            entries.append(_of_idx_files(sources.bundled_dir(), sources.BUNDLED_SOURCE, sources.RESTORE))
    return entries


def _looks_like_a_set(path: Path) -> bool:
    has_split = folder.has_lists(path) or any((path / split).is_dir() for split in folder.SPLITS)
    return path.is_dir() and not path.name.startswith(".") and (has_split or path.name in KNOWN)


def _of_folder(name: str) -> Entry:
    root = settings.data_dir() / name
    try:
        train, test = (folder.list_images(root, split) for split in folder.SPLITS)
        shape = KNOWN[name].shape if name in KNOWN else folder.peek(train)
    except (OSError, ValueError) as error:
        return Entry(name, None, None, None, str(error))
    return Entry(name, len(train.files), len(test.files), shape, f"image folder {sources.data_dir_in_words()}/{name}")


def _of_idx_files(root: Path, source: str, way_out: str) -> Entry:
    try:
        files = [sources.idx_files(root, split)[0] for split in folder.SPLITS]
        train, test = (idx.read_idx_shape(file, way_out) for file in files)
        if len(train) != 3:
            raise ValueError(f"{files[0]} has shape {train}, expected (N, H, W); {way_out}")
    except ValueError as error:
        return Entry("fashion-mnist", None, None, None, str(error))
    count, height, width = train
    return Entry("fashion-mnist", count, test[0], (1, height, width), source)


def _of_download(name: str, kind: str) -> Entry:
    if missing := downloads.missing_files(kind):
        return Entry(name, None, None, None, f"{missing[0]} is missing; remove its folder and download the set again")
    known = KNOWN[name]
    train, test = known.counts or (None, None)
    return Entry(name, train, test, known.shape, f"torchvision's download of {kind}")
