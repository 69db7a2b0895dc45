"""What an unfinished run leaves on disk: written whole, checked when read, never taken for another run's."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from metasp_lite import files

_FORMAT = 1  # of the file; another number is not read
_DIGEST = hashlib.sha256().digest_size
_AGAIN = "restore it from a copy, delete it to start again, or give another folder"


def save_checkpoint(path: Path, identity: Mapping[str, object], state: Mapping[str, object]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts of them) as the checkpoint of the run ``identity``.

    The SHA-256 sum at the end tells a damaged file: torch reads tensors with flipped bits without a word.

    Raises:
        OSError: when it cannot be written; the checkpoint that was there is still there.
    """
    content = io.BytesIO()
    torch.save({"format": _FORMAT, "identity": json.dumps(identity), "state": dict(state)}, content)
    content.write(hashlib.sha256(content.getbuffer()).digest())
    try:
        files.write_atomically(path, content.getvalue())
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}); make room, then run the same command again: "
            "it goes on from the last checkpoint"
        ) from error


def load_checkpoint(path: Path, identity: Mapping[str, object], device: torch.device) -> dict | None:
    """Return the state in ``path`` with its tensors on ``device``, or None where there is no file.

    Raises:
        ValueError: when the file is damaged, of another format, or of another run; it stays as it is.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{path} is damaged, or no checkpoint of this program; {_AGAIN}")
    foreign = f"{path} is no checkpoint of this program; {_AGAIN}"
    try:
        stored = torch.load(io.BytesIO(body), weights_only=True, map_location=device)
        version, state, there = stored["format"], stored["state"], json.loads(stored["identity"])
    except Exception as error:  # with a sum that is right, anything may have been put there
        raise ValueError(foreign) from error
    if version != _FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version reads {_FORMAT}; give another folder")
    if not (isinstance(there, dict) and isinstance(state, dict)):
        raise ValueError(foreign)
    require_same(path, there, identity)
    return state


def go_on_from(path: Path, restore: Callable[[dict], None], state: dict) -> None:
    """Hand the ``state`` that ``load_checkpoint`` has read from ``path`` to ``restore``.

    Raises:
        ValueError: when it lacks something, or has it in another shape; the file stays as it is.
    """
    try:
        restore(state)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} does not hold what its run needs ({what}); {_AGAIN}") from error


def require_same(path: Path, there: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Refuse what another run has left, by the names of what differs.

    Raises:
        ValueError: when ``there``, read from ``path``, is not ``here``.
    """
    old, new = _flat(there), _flat(json.loads(json.dumps(here)))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        differing = "; ".join(f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in names)
        same = f", or go on with --threads {old['threads']}" if names == ["threads"] else ""
        raise ValueError(f"{path} is of another run ({differing}); give another folder{same}")


def _flat(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
