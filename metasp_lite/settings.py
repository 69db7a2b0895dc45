"""What the surroundings decide, each read in this one place: the profile, the device and the folders."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Profile = Literal["lite", "full"]
PROFILES: tuple[Profile, ...] = ("lite", "full")
PROJECT_DIR = Path(__file__).resolve().parent.parent
PROJECT_DATA_DIR = PROJECT_DIR / "data"
INSTALL_CHECKOUT = "use a checkout of the project (git clone, then pip install -e . in it)"
_FOLDERS = ("METASP_DATA", "METASP_CACHE")
GRID_EXAMPLE = Path(__file__).resolve().parent / "continual" / "example-grid.toml"  # help and errors show it


def profile() -> Profile:
    """How large the notebooks run: ``lite`` for a laptop (the default) or ``full`` for a GPU.

    Read from the environment variable ``METASP_PROFILE``.

    Raises:
        ValueError: for any other value; the message lists the two that exist.
    """
    value = os.environ.get("METASP_PROFILE", "lite")
    if value not in PROFILES:
        raise ValueError(f"METASP_PROFILE={value!r} is not a profile; set it to one of: {', '.join(PROFILES)}")
    return value


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder for ``~``; that of somebody unknown stays as it is, and is then not found.

    ``Path.expanduser`` ends with a RuntimeError for ``~nobody``.
    """
    return Path(os.path.expanduser(path))


def data_dir() -> Path:
    """Return the folder of the user's data sets: ``METASP_DATA``, or the project's ``data/`` where that is unset.

    Raises:
        FileNotFoundError: when ``METASP_DATA`` names a folder that does not exist, or is unset where the package was
            installed without the project.
    """
    named = os.environ.get("METASP_DATA")
    folder = expanded(named) if named else PROJECT_DATA_DIR
    if not os.path.isdir(folder):  # Path.is_dir fails where the name is too long
        if named:
            raise FileNotFoundError(f"METASP_DATA={folder} is not a folder; create it or unset METASP_DATA")
        raise FileNotFoundError(
            f"{folder} is not there; set METASP_DATA to a folder of data sets, or {INSTALL_CHECKOUT}"
        )
    return folder


def cache_dir() -> Path:
    """Return the folder for what can be computed again: ``METASP_CACHE``, else the project's ``data/cache``.

    Where the project cannot be written, or there is none, it is ``metasp_lite`` in the user's own folder of caches
    (``XDG_CACHE_HOME``, on most systems ``~/.cache``).  It may not exist yet; it is safe to delete.

    Raises:
        FileNotFoundError: when ``METASP_CACHE`` lies in the home folder of somebody unknown.
    """
    if named := os.environ.get("METASP_CACHE"):
        if (folder := expanded(named)).parts[:1] and folder.parts[0].startswith("~"):
            raise FileNotFoundError(f"METASP_CACHE={named}: nobody here has that home folder; give another folder")
        return folder.absolute()
    own = PROJECT_DATA_DIR / "cache"
    if os.access(own if own.exists() else PROJECT_DATA_DIR, os.W_OK | os.X_OK):
        return own
    system = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / system).absolute() / "metasp_lite"


def for_another_folder() -> dict[str, str]:
    """Return the variables of folders that are set, made absolute: for a process that starts elsewhere."""
    named = {name: os.environ.get(name) for name in _FOLDERS}
    return {name: os.path.abspath(expanded(folder)) for name, folder in named.items() if folder}


def device(asked: "torch.device | str | None" = None) -> "torch.device":
    """Return the device that everything runs on: the current CUDA device if there is one, else the CPU.

    With ``asked`` return that one, when it is here.

    Raises:
        ValueError: when it is not; the message lists those that are.
    """
    import torch  # here: the command line reads profiles and folders without it

    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(asked)
        torch.zeros(1, device=found).tolist()  # a name that torch knows may have nothing behind it
    except (RuntimeError, AssertionError, TypeError) as error:  # so is NotImplementedError, of devices without values
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ValueError(f"device={str(asked)!r} is not here; give one of: {', '.join(here)}") from error
    return found
