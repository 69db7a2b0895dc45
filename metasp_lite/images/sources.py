"""Where data sets come from: image folders, Debian's package, torchvision's downloads and the bundled subset."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from metasp_lite import settings
from metasp_lite.doors import typed
from metasp_lite.images import cache, downloads, folder, idx
from metasp_lite.images.sets import ImageSet, Split, coloured

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
BUNDLED_SOURCE = "bundled subset (1,000 training and 200 test images of each class)"
REINSTALL = "install it again: apt-get install --reinstall dataset-fashion-mnist"
RESTORE = "restore the bundled subset: git checkout -- data/bundled"
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_IDX_PREFIX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class _KnownSet:
    """What is fixed about a set that the course names: classes, image shape, torchvision's class and image counts."""

    classes: int
    shape: folder.Shape
    torchvision: str | None = None
    counts: tuple[int, int] | None = None


KNOWN = {
    "fashion-mnist": _KnownSet(10, (1, 28, 28), "FashionMNIST", (60_000, 10_000)),
    "mnist": _KnownSet(10, (1, 28, 28), "MNIST", (60_000, 10_000)),
    "cifar10": _KnownSet(10, (3, 32, 32), "CIFAR10", (50_000, 10_000)),
    "cifar100": _KnownSet(100, (3, 32, 32), "CIFAR100", (50_000, 10_000)),
    "mini-imagenet": _KnownSet(100, (3, None, None)),  # photographs of every size
}
_ANY = _KnownSet(0, (None, None, None))


@typed
def load(
    name: str | Path,
    split: Split = "train",
    *,
    source: str | None = None,
    size: int | None = None,
    whole: bool = False,
) -> ImageSet:
    """Return one split of a data set: (N, C, H, W) uint8 images and (N,) int64 labels; nothing is downloaded.

    ``name`` is a known set (``KNOWN``), a folder below the data folder, or a path to a folder; folders are laid out as
    ``{train,test}/<class>/*.{png,jpg,jpeg,webp}``, or as Mini-ImageNet's csv lists beside ``images/``. The first of
    folder, debian, download and bundled that has the set is taken, unless ``source`` names one of them; the bundled
    subset not where ``whole`` or the full profile asks for all images. ``size`` resizes the images to size × size.

    Raises:
        FileNotFoundError: when no source has it, or no more than its subset; the message says how to get it.
        ValueError: for an unknown split or source, or damaged data; the message names the file and the way out.
    """
    if split not in folder.SPLITS:
        raise ValueError(f"split={split!r} does not exist; pass one of: {', '.join(folder.SPLITS)}")
    if source is not None and source not in _LOADERS:
        raise ValueError(f"source={source!r} does not exist; pass one of: {', '.join(_LOADERS)}")
    if size is not None and not 1 <= size < 2**16:
        raise ValueError(f"size={size} is not a number of pixels; pass at least 1, and below 2**16")
    if isinstance(name, Path) or Path(name).name != name:
        if source not in (None, "folder"):
            raise ValueError(f"source={source!r} has no folder {name}; leave source out, or pass the name of a set")
        root = settings.expanded(name)
        if not os.path.isdir(root):
            raise FileNotFoundError(f"no folder {str(name)!r}; an image-folder tree is {folder.LAYOUT}")
        return _load_tree(root, split, size, _ANY, f"image folder {name}")
    for kind in (source,) if source else _LOADERS:
        if (images := _LOADERS[kind](name, split, size)) is not None:
            if kind == "bundled" and source is None and (whole or settings.profile() == "full"):
                raise FileNotFoundError(_only_a_subset(name))
            return images
    raise FileNotFoundError(_not_found(name, source))


@typed
def download(name: str) -> Path:
    """Download a set with torchvision, all or nothing, and return the folder it lies in; a set that is here is kept.

    Raises:
        ValueError: for a set that torchvision does not offer; the message says how to provide it.
        OSError: when it cannot be fetched or stored; nothing of it is left behind.
    """
    kind = torchvision_class_of(name)
    if kind is None:
        raise ValueError(f"{name} cannot be downloaded. Way out: {_folder_way_out(name)}")
    try:
        return downloads.fetch(kind)
    except OSError as error:
        raise OSError(f"{error}; check the network and the free space, or {_folder_way_out(name)}") from error


def ways_out(name: str) -> str:
    """Return what a user can do to get a known set, in words."""
    restore = RESTORE if settings.PROJECT_DATA_DIR.is_dir() else f"for its subset {settings.INSTALL_CHECKOUT}"
    return "; or ".join([*([restore] if name == "fashion-mnist" else []), *_ways_to_all(name)])


def torchvision_class_of(name: str) -> str | None:
    """Return the name of torchvision's class for a known set (``"CIFAR10"``), None where it has none."""
    return KNOWN[name].torchvision if name in KNOWN else None


def data_dir_in_words() -> str:
    """Return how a user knows the data folder: by the variable that names it, or as the project's own."""
    return "METASP_DATA" if os.environ.get("METASP_DATA") else "data"


def bundled_dir() -> Path:
    """Return the folder of the subset of Fashion-MNIST that comes with the project."""
    return settings.PROJECT_DATA_DIR / "bundled" / "fashion-mnist"


def idx_files(root: Path, split: str) -> tuple[Path, Path]:
    """Return the files of a split's images and of its labels, by the names that MNIST gave them."""
    prefix = root / _IDX_PREFIX[split]
    return Path(f"{prefix}-images-idx3-ubyte.gz"), Path(f"{prefix}-labels-idx1-ubyte.gz")


def folders_of(name: str) -> list[Path]:
    """Return the folders of this machine that ``load`` may read a set from, by its name or by a path to it."""
    if Path(name).name != name:
        return [settings.expanded(name)]
    own = [DEBIAN_FASHION_MNIST, bundled_dir()] if name == "fashion-mnist" else []
    folders = [settings.data_dir() / name, *own]
    return [each for each in folders if os.path.isdir(each)]


def _not_found(name: str, source: str | None) -> str:
    places = {"folder": f"the image folder {settings.data_dir() / name}"}
    if torchvision_class_of(name) is not None:
        places["download"] = f"torchvision's download below {downloads.downloads_dir()}"
    if name == "fashion-mnist":
        places |= {"debian": f"Debian's folder {DEBIAN_FASHION_MNIST}", "bundled": f"the subset in {bundled_dir()}"}
    looked = [places[kind] for kind in _LOADERS if kind in places and source in (None, kind)]
    sentence = f"{name} was not found; looked for {', '.join(looked)}" if looked else f"{name} has no source {source!r}"
    unknown = "" if name in KNOWN else f" (known sets: {', '.join(KNOWN)})"
    return f"{sentence}{unknown}. Ways out: {ways_out(name)}"


def _ways_to_all(name: str) -> list[str]:
    ways = ["apt-get install dataset-fashion-mnist"] if name == "fashion-mnist" else []
    if torchvision_class_of(name) is not None:
        ways.append(f"python -m metasp_lite data download {name}")
    return [*ways, _folder_way_out(name)]


def _only_a_subset(name: str) -> str:
    ways = "; or ".join([*_ways_to_all(name), "take the subset by its name, source=bundled"])
    return f"all of {name} is asked for, and no more than the {BUNDLED_SOURCE} is here. Ways out: {ways}"


def _folder_way_out(name: str) -> str:
    lists = f"{name}/images/ with {', '.join(folder.CSV_LISTS)}" if name == "mini-imagenet" else ""
    tree = " or ".join(filter(None, [f"{name}/{folder.LAYOUT}", lists]))
    return f"put an image folder {tree} below {settings.data_dir()} or below your own METASP_DATA"


def _load_folder(name: str, split: Split, size: int | None) -> ImageSet | None:
    root = settings.data_dir() / name
    if not os.path.isdir(root):  # Path.is_dir fails where the name is too long
        return None
    return _load_tree(root, split, size, KNOWN.get(name, _ANY), f"image folder {data_dir_in_words()}/{name}")


def _load_tree(root: Path, split: Split, size: int | None, known: _KnownSet, source: str) -> ImageSet:
    listing = folder.list_images(root, split)
    if known.classes and len(listing.classes) != known.classes:
        found = f"{listing.folder} holds {len(listing.classes)} class folders"
        raise ValueError(f"{found}, but {root.name} has {known.classes} classes; complete it or rename {root}")
    if known is _ANY:
        _require_one_mode(root, listing)
    mixed = known.shape == (3, None, None)  # photographs: a few are stored as grey or CMYK
    images = cache.read_images(root, listing, folder.Decoding(known.shape, size, to_rgb=mixed))
    return ImageSet(torch.from_numpy(images), torch.tensor(listing.labels), listing.classes, root.name, source)


def _require_one_mode(root: Path, listing: folder.Listing) -> None:
    """Refuse splits of which the first images are of different colours, before any is decoded and kept."""
    (other,) = (split for split in folder.SPLITS if split != listing.split)
    modes = {each.split: folder.peek(each)[0] for each in (listing, folder.list_images(root, other))}
    if {*modes.values()} == {1, 3}:  # any other is no mode of a set, and refused by the name of its file
        raise ValueError(
            f"{root.name} has {coloured(modes['train'])} training and {coloured(modes['test'])} test images; "
            "store both splits in one mode"
        )


def _load_idx(root: Path, split: Split, size: int | None, source: str, way_out: str) -> ImageSet:
    paths = idx_files(root, split)
    images, labels = (idx.read_idx(path, way_out) for path in paths)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{paths[0]} has shape {images.shape}, expected (N, 28, 28); {way_out}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{paths[1]} has shape {labels.shape}, expected ({len(images)},); {way_out}")
    if labels.size and labels.max() >= len(_FASHION_CLASSES):
        raise ValueError(f"{paths[1]} holds label {labels.max()}, expected 0..{len(_FASHION_CLASSES) - 1}; {way_out}")
    return _image_set(torch.from_numpy(images)[:, None], labels, _FASHION_CLASSES, "fashion-mnist", source, size)


def _image_set(
    images: torch.Tensor, labels: "ArrayLike", classes: Sequence[str], name: str, source: str, size: int | None
) -> ImageSet:
    numbers = torch.as_tensor(labels, dtype=torch.int64)
    return ImageSet(images if size is None else _resize(images, size), numbers, tuple(classes), name, source)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize each image as ``folder.decode`` resizes files, so that every source of a set gives the same pixels."""
    channels_last = images.permute(0, 2, 3, 1).numpy()
    result = np.empty((len(images), size, size, images.shape[1]), np.uint8)
    for i, pixels in enumerate(channels_last):
        image = Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))
        result[i] = np.asarray(folder.resized(image, size)).reshape(result.shape[1:])
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


def _load_debian(name: str, split: Split, size: int | None) -> ImageSet | None:
    if name != "fashion-mnist" or not DEBIAN_FASHION_MNIST.is_dir():
        return None
    source = "all of Fashion-MNIST, from Debian's package dataset-fashion-mnist"
    return _load_idx(DEBIAN_FASHION_MNIST, split, size, source, REINSTALL)


def _load_bundled(name: str, split: Split, size: int | None) -> ImageSet | None:
    if name != "fashion-mnist" or not bundled_dir().is_dir():
        return None
    _check_sums(bundled_dir(), split)
    return _load_idx(bundled_dir(), split, size, BUNDLED_SOURCE, RESTORE)


def _check_sums(root: Path, split: Split) -> None:
    sums = root / "SHA256SUMS"
    try:
        listed = sums.read_text("utf-8", "replace").splitlines()  # as sha256sum writes: digest, two spaces, name
        for path in idx_files(root, split):
            if f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" not in listed:
                raise ValueError(f"{path} does not have the SHA-256 sum that {sums.name} lists; {RESTORE}")
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}); {RESTORE}") from error


def _load_download(name: str, split: Split, size: int | None) -> ImageSet | None:
    kind = torchvision_class_of(name)
    if kind is None or not downloads.folder_of(kind).is_dir():
        return None
    images, labels, classes = downloads.read_download(kind, split)
    classes = tuple(map(str, range(10))) if name == "mnist" else classes  # as its class folders are named
    return _image_set(images, labels, classes, name, f"torchvision's download of {kind}", size)


_LOADERS: dict[str, Callable[[str, Split, int | None], ImageSet | None]] = {
    "folder": _load_folder,
    "debian": _load_debian,
    "download": _load_download,
    "bundled": _load_bundled,
}
