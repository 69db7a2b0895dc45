"""Stored results: one JSON file each, an object or a list of them, with what is needed to obtain it again."""

import errno
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from metasp_lite import settings
from metasp_lite.doors import typed
from metasp_lite.files import require_writable, write_atomically

RESULTS_DIR = settings.PROJECT_DATA_DIR / "results"
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")


def provenance() -> dict[str, object]:
    """Say with what a result was obtained: commit, whether code differed from it, versions, device, cores, date."""
    return {
        **_code(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": settings.device().type,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }


@typed
def write(path: Path, result: Mapping[str, object] | Sequence[Mapping[str, object]]) -> None:
    """Write ``result`` and its provenance as JSON; the file is there whole or, when anything fails, as it was before.

    In a list every object gets the provenance, and in it the SHA-256 sum of the object: one digit in place of another
    is good JSON, and a finished run is not trained again.

    Raises:
        ValueError: for what JSON does not have, a NaN or an infinite number among it.
        OSError: when the file cannot be written.
    """
    origin, objects = provenance(), [result] if isinstance(result, Mapping) else list(result)
    try:
        if not all(isinstance(each, Mapping) for each in objects):
            raise TypeError("it is no object, and no list of objects")
        stamped = [_stamped(each, origin) for each in objects]
        whole = stamped[0] if isinstance(result, Mapping) else stamped
        content = (json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: the result cannot be written as JSON ({error}); give numbers, texts, lists and mappings"
        ) from error
    try:
        write_atomically(path, content)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (errno.EINVAL, error)
        said = f"the result cannot be written ({reason}); permit it, or give another place"
        raise OSError(number, said, str(path)) from error


def place(name: str) -> Path:
    """Return where the result ``name`` (``"bench/toy.json"``) is stored, before it is computed by this code.

    Raises:
        OSError: when it could not be written there, or where the package was installed without the project.
    """
    if not settings.PROJECT_DATA_DIR.is_dir():
        raise FileNotFoundError(f"{RESULTS_DIR} is not there to store {name} in; {settings.INSTALL_CHECKOUT}")
    require_writable(RESULTS_DIR / name)
    _code()
    return RESULTS_DIR / name


@typed
def read(path: Path) -> Any:
    """Return a stored result: an object, or a list of objects.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: for another file: damaged, no JSON, with a number that JSON lacks, or no object at its top; for an
            object that has not its sum (an older one has none).
    """
    way_out = "move it away and measure again"
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no result {path}; measure it first") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read as a result ({error.strerror}); {way_out}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a result ({error}); {way_out}") from error
    objects = found if isinstance(found, list) else [found]
    if not all(isinstance(each, dict) for each in objects):
        raise ValueError(f"{path} is not a result: it holds no object; {way_out}")
    if not all(map(_is_as_written, objects)):
        raise ValueError(f"{path} cannot be read as a result (it is not as it was written: another sum); {way_out}")
    return found


def _stamped(result: Mapping[str, object], origin: Mapping[str, object]) -> dict[str, object]:
    """Add the provenance, and to that the sum of all the rest."""
    return {**result, "obtained_with": {**origin, "sum": _sum({**result, "obtained_with": origin})}}


def _sum(result: Mapping[str, object]) -> str:
    """Return the SHA-256 sum of an object, the same however its JSON is laid out."""
    plain = json.loads(json.dumps(result))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _is_as_written(result: Mapping[str, Any]) -> bool:
    """Whether an object that was read has its sum, where it has any."""
    origin = result.get("obtained_with")
    if not isinstance(origin, dict) or "sum" not in origin:
        return True
    rest = {name: value for name, value in origin.items() if name != "sum"}
    return origin["sum"] == _sum({**result, "obtained_with": rest})


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


@functools.cache
def _code() -> dict[str, object]:
    """Return commit and whether the code differed from it, as they were when this process first asked.

    A long computation goes on with the code that it has loaded, whatever is committed meanwhile.
    """
    changes = _git("status", "--porcelain", "--", "metasp_lite", "pyproject.toml")
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": None if changes is None else changes != "",  # None: not a checkout
    }


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None outside a checkout.

    It takes no lock: a run that is killed meanwhile would leave it, and git would refuse to commit from then on.
    """
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(settings.PROJECT_DIR), *arguments],
            capture_output=True,
            check=True,
            encoding="utf-8",
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
