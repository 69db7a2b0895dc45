"""Data sets as uint8 tensors with their classes, and where they come from: folders, Debian, torchvision, bundled."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from metasp_lite import settings
from metasp_lite.images import cache, downloads, folder, idx

Split = Literal["train", "test"]
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
BUNDLED_PER_CLASS = {"train": 1000, "test": 200}
BUNDLED_SOURCE = "bundled subset (1,000 training and 200 test images of each class)"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


_IDX_PREFIX = {"train": "train", "test": "t10k"}
_REINSTALL = "install it again: apt-get install --reinstall dataset-fashion-mnist"
_RESTORE = "restore the bundled subset: git checkout -- data/bundled"


@dataclass(frozen=True)
class KnownSet:
    """What is fixed about a set that the course names: classes, image shape, torchvision's class and image counts."""

    classes: int
    shape: folder.Shape
    torchvision: str | None = None
    counts: tuple[int, int] | None = None


KNOWN = {
    "fashion-mnist": KnownSet(10, (1, 28, 28), "FashionMNIST", (60_000, 10_000)),
    "mnist": KnownSet(10, (1, 28, 28), "MNIST", (60_000, 10_000)),
    "cifar10": KnownSet(10, (3, 32, 32), "CIFAR10", (50_000, 10_000)),
    "cifar100": KnownSet(100, (3, 32, 32), "CIFAR100", (50_000, 10_000)),
    "mini-imagenet": KnownSet(100, (3, None, None)),  # photographs of every size
}


_ANY = KnownSet(0, (None, None, None))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels, in a fixed order.

    ``images`` (N, C, H, W) uint8 in 0..255; ``labels`` (N,) int64, positions in ``classes``; ``source`` says in words
    where they came from.

    Raises:
        ValueError: when a shape, dtype or label breaks these rules.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    name: str
    source: str

    def __post_init__(self) -> None:
        """Check the rules above."""
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}; pass uint8 (N, C, H, W)")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; pass int64 ({len(self)},)")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            found = f"{int(self.labels.min())}..{int(self.labels.max())}"
            raise ValueError(f"labels of {self.name} span {found}; they must be in 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.images)

    def take(self, index: torch.Tensor) -> "ImageSet":
        """Return the images ``index (k,)``, in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index])


def load(name: str | Path, split: Split = "train", *, source: str | None = None, size: int | None = None) -> ImageSet:
    """Return one split of a data set: (N, C, H, W) uint8 images and (N,) int64 labels; nothing is downloaded.

    ``name`` is a known set (``KNOWN``), a folder below the data folder, or a path to a folder; folders are laid out as
    ``{train,test}/<class>/*.{png,jpg,jpeg,webp}``, or as Mini-ImageNet's csv lists beside ``images/``. The first of
    ``SOURCES`` that has the set is taken, unless ``source`` names one: folder, debian, download or bundled. ``size``
    resizes the images to size × size.

    Raises:
        FileNotFoundError: when no source has it; the message lists where it was looked for and how to get it.
        ValueError: for an unknown split or source, or damaged data; the message names the file and the way out.
    """
    if split not in folder.SPLITS:
        raise ValueError(f"split={split!r} does not exist; pass one of: {', '.join(folder.SPLITS)}")
    if source is not None and source not in SOURCES:
        raise ValueError(f"source={source!r} does not exist; pass one of: {', '.join(SOURCES)}")
    if size is not None and size < 1:
        raise ValueError(f"size={size} is not a number of pixels; pass at least 1")
    if _is_path(name):
        if source not in (None, "folder"):
            raise ValueError(f"source={source!r} has no folder {name}; leave source out, or pass the name of a set")
        return _load_tree(Path(name).expanduser(), split, size, _ANY, f"image folder {name}")
    for kind in (source,) if source else SOURCES:
        if (images := SOURCES[kind](name, split, size)) is not None:
            return images
    raise FileNotFoundError(_not_found(name, source))


def first_per_class(images: ImageSet, count: int) -> ImageSet:
    """Return the first ``count`` images of each class, in the order they have in ``images``.

    Nothing is drawn at random: every source of a set gives the same images.

    Raises:
        ValueError: when ``count`` is below 1 or a class has fewer images; the message says how many it has.
    """
    if count < 1:
        raise ValueError(f"count={count} images of each class; pass at least 1")
    slots = []
    for label, name in enumerate(images.classes):
        mine = torch.nonzero(images.labels == label).flatten()
        if len(mine) < count:
            raise ValueError(f"class {name!r} of {images.name} has {len(mine)} images, {count} were asked for")
        slots.append(mine[:count])
    kept = torch.cat(slots).sort().values
    source = f"{images.source}, of it the first {count:,} of each class"
    return replace(images, images=images.images[kept], labels=images.labels[kept], source=source)


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or Path(name).name != name


def _data_dir_in_words() -> str:
    return "METASP_DATA" if os.environ.get("METASP_DATA") else "data"


def _not_found(name: str, source: str | None) -> str:
    places = {"folder": f"the image folder {settings.data_dir() / name}"}
    if _torchvision_class_of(name) is not None:
        places["download"] = f"torchvision's download below {downloads.downloads_dir()}"
    if name == "fashion-mnist":
        places |= {"debian": f"Debian's folder {DEBIAN_FASHION_MNIST}", "bundled": f"the subset in {_bundled_dir()}"}
    looked = [places[kind] for kind in SOURCES if kind in places and source in (None, kind)]
    sentence = f"{name} was not found; looked for {', '.join(looked)}" if looked else f"{name} has no source {source!r}"
    unknown = "" if name in KNOWN else f" (known sets: {', '.join(KNOWN)})"
    return f"{sentence}{unknown}. Ways out: {ways_out(name)}"


def ways_out(name: str) -> str:
    """Return what a user can do to get a known set, in words."""
    ways = [_RESTORE, "apt-get install dataset-fashion-mnist"] if name == "fashion-mnist" else []
    if _torchvision_class_of(name) is not None:
        ways.append(f"python -m metasp_lite data download {name}")
    return "; or ".join([*ways, _folder_way_out(name)])


def _folder_way_out(name: str) -> str:
    lists = f"{name}/images/ with {', '.join(folder.CSV_LISTS)}" if name == "mini-imagenet" else ""
    tree = " or ".join(filter(None, [f"{name}/{folder.LAYOUT}", lists]))
    return f"put an image folder {tree} below {settings.data_dir()} or below your own METASP_DATA"


def _load_folder(name: str, split: Split, size: int | None) -> ImageSet | None:
    root = settings.data_dir() / name
    if not root.is_dir():
        return None
    return _load_tree(root, split, size, KNOWN.get(name, _ANY), f"image folder {_data_dir_in_words()}/{name}")


def _load_tree(root: Path, split: Split, size: int | None, known: KnownSet, source: str) -> ImageSet:
    listing = folder.list_images(root, split)
    if known.classes and len(listing.classes) != known.classes:
        found = f"{listing.folder} holds {len(listing.classes)} class folders"
        raise ValueError(f"{found}, but {root.name} has {known.classes} classes; complete it or rename {root}")
    mixed = known.shape == (3, None, None)  # photographs: a few are stored as grey or CMYK
    images = cache.read(root, listing, folder.Decoding(known.shape, size, to_rgb=mixed))
    return ImageSet(torch.from_numpy(images), torch.tensor(listing.labels), listing.classes, root.name, source)


def _idx_files(folder: Path, split: Split) -> tuple[Path, Path]:
    prefix = folder / _IDX_PREFIX[split]
    return Path(f"{prefix}-images-idx3-ubyte.gz"), Path(f"{prefix}-labels-idx1-ubyte.gz")


def _load_idx(folder: Path, split: Split, size: int | None, source: str, way_out: str) -> ImageSet:
    paths = _idx_files(folder, split)
    images, labels = (idx.read(path, way_out) for path in paths)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{paths[0]} has shape {images.shape}, expected (N, 28, 28); {way_out}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{paths[1]} has shape {labels.shape}, expected ({len(images)},); {way_out}")
    if labels.size and labels.max() >= len(FASHION_CLASSES):
        raise ValueError(f"{paths[1]} holds label {labels.max()}, expected 0..{len(FASHION_CLASSES) - 1}; {way_out}")
    return _image_set(torch.from_numpy(images)[:, None], labels, FASHION_CLASSES, "fashion-mnist", source, size)


def _image_set(
    images: torch.Tensor,
    labels: np.ndarray | list[int],
    classes: tuple[str, ...],
    name: str,
    source: str,
    size: int | None,
) -> ImageSet:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return ImageSet(images if size is None else _resize(images, size), labels, classes, name, source)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize each image as ``image_folder`` resizes files, so that every source of a set gives the same pixels."""
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
    return _load_idx(DEBIAN_FASHION_MNIST, split, size, source, _REINSTALL)


def _bundled_dir() -> Path:
    return settings.PROJECT_DATA_DIR / "bundled" / "fashion-mnist"


def _load_bundled(name: str, split: Split, size: int | None) -> ImageSet | None:
    folder = _bundled_dir()
    if name != "fashion-mnist" or not folder.is_dir():
        return None
    _check_sums(folder, split)
    return _load_idx(folder, split, size, BUNDLED_SOURCE, _RESTORE)


def _check_sums(folder: Path, split: Split) -> None:
    sums = folder / "SHA256SUMS"
    try:
        listed = sums.read_text(errors="replace").splitlines()  # as sha256sum writes them: digest, two spaces, name
        for path in _idx_files(folder, split):
            if f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" not in listed:
                raise ValueError(f"{path} does not have the SHA-256 sum that {sums.name} lists; {_RESTORE}")
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}); {_RESTORE}") from error


def _load_download(name: str, split: Split, size: int | None) -> ImageSet | None:
    kind = _torchvision_class_of(name)
    if kind is None or not downloads.folder(kind).is_dir():
        return None
    images, labels, classes = downloads.read(kind, split)
    classes = tuple(map(str, range(10))) if name == "mnist" else classes  # as its class folders are named
    return _image_set(images, labels, classes, name, f"torchvision's download of {kind}", size)


def _torchvision_class_of(name: str) -> str | None:
    return KNOWN[name].torchvision if name in KNOWN else None


SOURCES: dict[str, Callable[[str, Split, int | None], ImageSet | None]] = {
    "folder": _load_folder,
    "debian": _load_debian,
    "download": _load_download,
    "bundled": _load_bundled,
}


def download(name: str) -> Path:
    """Download a set with torchvision, all or nothing, and return the folder it lies in; a set that is here is kept.

    Raises:
        ValueError: for a set that torchvision does not offer; the message says how to provide it.
        OSError: when it cannot be fetched or stored; nothing of it is left behind.
    """
    kind = _torchvision_class_of(name)
    if kind is None:
        raise ValueError(f"{name} cannot be downloaded. Way out: {_folder_way_out(name)}")
    try:
        return downloads.fetch(kind)
    except OSError as error:
        raise OSError(f"{error}; check the network and the free space, or {_folder_way_out(name)}") from error
