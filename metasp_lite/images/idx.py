"""The idx format of MNIST and Fashion-MNIST: gzipped arrays of bytes."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

# what gzip, zlib, struct and the checks below raise for a file that is missing, damaged or something else
_DAMAGE = (OSError, EOFError, zlib.error, struct.error, ValueError)


def read_idx(path: Path, way_out: str) -> np.ndarray:
    """Return the array of a gzipped idx file, uint8: labels (N,) or images (N, H, W).

    The format: two zero bytes, the type (8: unsigned bytes), the number of dimensions, each dimension as a big-endian
    32-bit integer, then the data in C order.

    Raises:
        ValueError: when the file is missing, truncated or no such file; the message ends with ``way_out``.
    """
    try:
        with gzip.open(path) as file:
            shape = _read_shape(file)
            data = bytearray(file.read())
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a whole idx file of bytes ({error}); {way_out}") from error
    if len(data) != math.prod(shape):
        raise ValueError(f"{path} holds {len(data):,} bytes of data, its header says {math.prod(shape):,}; {way_out}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_idx_shape(path: Path, way_out: str) -> tuple[int, ...]:
    """Return the shape that the file's header declares, without reading the data.

    Raises:
        ValueError: when there is no such header; the message ends with ``way_out``.
    """
    try:
        with gzip.open(path) as file:
            return _read_shape(file)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not an idx file of bytes ({error}); {way_out}") from error


def _read_shape(file: gzip.GzipFile) -> tuple[int, ...]:
    zero, kind, dimensions = struct.unpack(">HBB", file.read(4))
    if (zero, kind) != (0, 8):
        raise ValueError(
            f"its magic number is {zero:04x}{kind:02x}{dimensions:02x}, expected 000008 and the dimensions"
        )
    if not 1 <= dimensions <= 3:
        raise ValueError(f"its header says {dimensions} dimensions, expected 1 of labels or 3 of images")
    return struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
