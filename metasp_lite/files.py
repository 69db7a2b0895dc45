"""The one way a file is written: beside its place under a name of its own, onto the disk, then renamed."""

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def folder(text: str) -> Path:
    """Return the path that a user has written; the empty text, which is the current folder for Python, is none.

    Raises:
        ValueError: for the empty text.
    """
    if not text.strip():
        raise ValueError("the name of a folder is empty; name one, . for the current folder")
    return Path(text)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever looks finds the old content or the new, never half of either; text as UTF-8.

    Raises:
        OSError: when it cannot be written; the old file is as it was, and nothing else is left.
    """
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write in pieces, which takes the place of ``path`` at the end; after any error there is no trace.

    It has the permissions of the file that it replaces, or those that ``open`` gives a new one.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    made = [folder for folder in path.parents if not os.path.lexists(folder)]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:  # "x": neither another writer's file nor a link that somebody has put there
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, part)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # to the first folder that another process has put something into
            part.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise


class _NotYet(Exception):
    """Ends a write that was a question."""


def require_writable(path: Path) -> None:
    """Make sure that a file can be written at ``path``, before what it is to hold is computed; leaves no trace.

    Raises:
        OSError: when it cannot, with the reason.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with contextlib.suppress(_NotYet), replacing(path):
            raise _NotYet
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise OSError(f"cannot write {path} ({getattr(error, 'strerror', None) or error}); permit it") from error


def remove_leftovers(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove from ``folder`` what killed writers have left.

    A writer at work is not told from a killed one: call it where there is none, or where none rests for ``older_than``
    seconds.
    """
    for part in folder.glob(".*.part"):
        if re.search(r"\.[0-9a-f]{32}\.part$", part.name):
            with contextlib.suppress(OSError):  # another process may have removed it
                if time.time() - part.stat().st_mtime >= older_than:
                    part.unlink()
