"""The pixels of an image folder, decoded once: kept as one memory-mapped file until a file of the folder changes.

By hand, for ``ImageFolder`` decodes an image again at every access.  The file is a .npy with the SHA-256 sum of all of
it behind; a cache that does not have its sum is built anew, so that no damaged pixel is trained on.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from metasp_lite import files, settings
from metasp_lite.images.folder import MODE_OF_CHANNELS, Decoding, Listing, decode

_CHUNK_BYTES = 32 * 2**20
_FILES_PER_JOB = 64
_SUM_BYTES = 32
_ABANDONED_AFTER = 3600.0  # seconds without a write after which a half-written cache belongs to no living process


def read_images(root: Path, listing: Listing, decoding: Decoding) -> np.ndarray:
    """Return the images of ``listing``, (N, C, H, W) uint8, memory-mapped from the cache; writing to them is private.

    The first call decodes all files and writes the cache; a change of any file's name, size or time, or another file
    in its place, builds it anew; so does damage to the cache, with a warning.

    Raises:
        ValueError: as ``decode``; when the cache would lie among the images.
        OSError: when the cache cannot be written, with the space it needs; when a file changes while it is read.
    """
    kind, fingerprint = _cache_kind(root, listing, decoding), _fingerprint(listing)
    path = settings.cache_dir() / f"{kind}-{fingerprint}.npy"
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):  # Path.resolve fails where links go round
        raise ValueError(
            f"the cache {path.parent} lies inside the images of {root}; set METASP_CACHE to another folder"
        )
    if (images := _open_cache(path, listing, decoding)) is not None:
        return images
    if path.exists():
        warnings.warn(f"the cache {path} is damaged; it is built anew from the images", stacklevel=2)
    _build_cache(path, listing, decoding)
    _remove_stale(kind, keep=path)
    if _fingerprint(listing) != fingerprint:
        raise OSError(f"files of {listing.folder} have changed while they were read; load again when they rest")
    if (images := _open_cache(path, listing, decoding)) is None:
        raise OSError(f"the cache {path} was changed by another process while it was being built; load again")
    return images


def _cache_kind(root: Path, listing: Listing, decoding: Decoding) -> str:
    key = hashlib.sha256(os.fsencode(root.resolve()) + repr(decoding).encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9.]", "_", root.resolve().name)[:40]
    return f"{name}-{listing.split}-{decoding.size or 'native'}-{key}"


def _fingerprint(listing: Listing) -> str:
    """Tell files that were changed or replaced.

    Whoever sets a file's time back moves its ctime, which the system alone sets; a file put in its place has another
    inode.
    """
    digest = hashlib.sha256()
    for file in listing.files:
        status = os.stat(f"{listing.folder}/{file}")
        numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(os.fsencode(file) + "\0{}\0{}\0{}\0{}\0".format(*numbers).encode())
    return digest.hexdigest()[:16]


def _open_cache(path: Path, listing: Listing, decoding: Decoding) -> np.ndarray | None:
    """Return the memory-mapped cache, or None where there is none or it is damaged in whatever way."""
    try:
        content = np.memmap(path, np.uint8, "r")
        if hashlib.sha256(content[:-_SUM_BYTES].data).digest() != content[-_SUM_BYTES:].tobytes():
            return None
        images = np.lib.format.open_memmap(path, mode="c")  # .npy only: no zip, no pickle
        complete = len(content) == images.offset + images.nbytes + _SUM_BYTES
    except Exception:
        return None
    if not complete or images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(listing.files):
        return None
    expected = (decoding.shape[0], decoding.size, decoding.size) if decoding.size else decoding.shape
    fits = all(want in (None, have) for want, have in zip(expected, images.shape[1:], strict=True))
    return images if fits and images.shape[1] in MODE_OF_CHANNELS and images.flags.c_contiguous else None


def _build_cache(path: Path, listing: Listing, decoding: Decoding) -> None:
    """Write the cache; no reader ever meets half of it."""
    decoding, first = _settled_by_first(listing, decoding)
    height_width = (decoding.size, decoding.size) if decoding.size else first.shape[1:]
    shape = (len(listing.files), len(first), *height_width)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    digest = hashlib.sha256(header.getvalue())
    need = np.prod(shape) / 2**20
    try:
        if (free := _free_mib(path)) < need:
            raise OSError(f"only {free:,.1f} MiB are free")
        with files.replacing(path) as file:
            file.write(header.getvalue())
            for images in _decoded(listing, decoding, first):
                file.write(images.data)
                digest.update(images.data)
            file.write(digest.digest())
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write the cache {path} ({reason}); it needs {need:,.1f} MiB: free space or permit it, "
            "or set METASP_CACHE to another folder"
        ) from error


def _free_mib(path: Path) -> float:
    """Return how much the disk that ``path`` is to lie on can still take; the folders above it may not exist yet."""
    return shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free / 2**20


def _settled_by_first(listing: Listing, decoding: Decoding) -> tuple[Decoding, np.ndarray]:
    """Return the decoding with the first file's shape in place of what it left open, and that file's pixels."""
    path = listing.folder / listing.files[0]
    native = decode(path, Decoding(decoding.shape, to_rgb=decoding.to_rgb))
    shape = native.shape if decoding.size is None else (native.shape[0], *decoding.shape[1:])
    return Decoding(shape, decoding.size, decoding.to_rgb), native


def _decoded(listing: Listing, decoding: Decoding, first: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images in order, stacked, a bounded number at a time so that memory stays flat."""

    def job(files: tuple[str, ...]) -> np.ndarray:
        return np.stack([decode(listing.folder / file, decoding) for file in files])

    # Decoding a small image is mostly Python, one thread at a time: two overlap it with the disk, more only get slower
    workers = min(2 if first.nbytes < 2**15 else 8, _usable_cpus())
    per_job = max(1, min(_FILES_PER_JOB, _CHUNK_BYTES // (first.nbytes * workers)))
    jobs = [listing.files[i : i + per_job] for i in range(0, len(listing.files), per_job)]
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(listing.files), desc=f"decoding {listing.split}", disable=None, leave=False) as bar,
    ):
        for i in range(0, len(jobs), workers):
            for images in pool.map(job, jobs[i : i + workers]):
                yield images
                bar.update(len(images))


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remove_stale(kind: str, *, keep: Path) -> None:
    """Remove the caches of earlier states of the same split, and what killed processes have left of any."""
    files.remove_leftovers(keep.parent, older_than=_ABANDONED_AFTER)
    for path in keep.parent.glob(f"{kind}-*.npy"):
        if path != keep:
            with contextlib.suppress(OSError):  # another process may have removed it
                path.unlink()
