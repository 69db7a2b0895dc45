"""Make the bundled subset of Fashion-MNIST anew from Debian's package dataset-fashion-mnist.

Run it as ``python data/bundled/fashion-mnist/make.py [FOLDER]``; without FOLDER it writes beside itself.
"""

import gzip
import hashlib
import io
import struct
import sys
from pathlib import Path

import numpy as np

from metasp_lite import images

HERE = Path(__file__).resolve().parent
PER_CLASS = {"train": 1000, "test": 200}


def idx_gz(array: np.ndarray) -> bytes:
    """Return ``array`` (uint8) as a gzipped idx file; no time and no name go into it, so its bytes are reproducible."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(header + array.tobytes())
    return buffer.getvalue()


def make(folder: Path) -> None:
    """Write the four idx files, the first images of each class in their original order, and SHA256SUMS."""
    contents = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        whole = images.load("fashion-mnist", split, source="debian")
        subset = images.first_per_class(whole, PER_CLASS[split])
        contents[f"{prefix}-images-idx3-ubyte.gz"] = idx_gz(subset.images.squeeze(1).numpy())
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = idx_gz(subset.labels.numpy().astype(np.uint8))
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    contents["SHA256SUMS"] = "".join(sums).encode()
    for name, content in contents.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
