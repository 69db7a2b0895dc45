"""What the surroundings decide, each read in this one place: the profile, the device and the folders."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Profile = Literal["lite", "full"]
PROFILES: tuple[Profile, ...] = ("lite", "full")
PROJECT_DIR = Path(__file__).resolve().parent.parent
PROJECT_DATA_DIR = PROJECT_DIR / "data"
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


def data_dir() -> Path:
    """Return the folder of the user's data sets: ``METASP_DATA``, or the project's ``data/`` where that is unset.

    Raises:
        FileNotFoundError: when ``METASP_DATA`` names a folder that does not exist.
    """
    folder = Path(os.environ.get("METASP_DATA") or PROJECT_DATA_DIR).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"METASP_DATA={folder} is not a folder; create it or unset METASP_DATA")
    return folder


def device() -> "torch.device":
    """Return the device that everything runs on: the current CUDA device if there is one, else the CPU."""
    import torch  # here: the command line reads profiles and folders without it

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
