"""Open JupyterLab on a copy of the notebooks that is the learner's own: ``python -m metasp_lite lab``."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping

from metasp_lite import settings
from metasp_lite.commands.tour import NOTEBOOKS_DIR
from metasp_lite.files import write_atomically

_COPIES = settings.PROJECT_DIR / "my-notebooks"  # git ignores it
_ORIGINS = ".copied-from.json"  # in it: of each copy the SHA-256 sum of the notebook that it was made from
_CONFIG = settings.PROJECT_DIR / "build" / "lab-config"
_START = "00-start-here.ipynb"
# defaults, which the learner's own settings override: JupyterLab asks nobody for news, and shows no popup about them
_DEFAULTS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what goes on to JupyterLab."""
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="JupyterLab's: -- --no-browser")


def main(arguments: argparse.Namespace) -> int:
    """Make or keep the copies, say which, and become JupyterLab on its start page."""
    _copy_notebooks()
    config = _CONFIG / "labconfig" / "default_setting_overrides.json"
    write_atomically(config, json.dumps(_DEFAULTS, indent=2) + "\n")
    paths = [str(_CONFIG), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    environment = os.environ | settings.for_another_folder() | {"JUPYTER_CONFIG_PATH": os.pathsep.join(paths)}
    environment.pop("MPLBACKEND", None)  # with one of the user's own choice figures would not appear in notebooks
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={_COPIES}"]
    words += [f"--LabApp.default_url=/lab/tree/{_START}", "--LabApp.news_url=None", *arguments.options]
    sys.stdout.flush()
    os.execve(sys.executable, words, environment)  # JupyterLab itself answers Ctrl-C


def _copy_notebooks() -> None:
    """Copy the notebooks that are not among the copies yet; leave those that are, and say what is new in the course.

    Raises:
        ValueError: where there are no notebooks, or where the copies should lie there is a file.
    """
    if _COPIES.exists() and not _COPIES.is_dir():
        raise ValueError(f"{_COPIES} is a file; move it away, so that your copies of the notebooks can lie there")
    notebooks = {path.name: path.read_bytes() for path in sorted(NOTEBOOKS_DIR.glob("*.ipynb"))}
    if not notebooks:
        raise ValueError(f"there is no notebook in {NOTEBOOKS_DIR}; {settings.INSTALL_CHECKOUT}")
    origins, newer = _origins(), []
    missing = [name for name in notebooks if not (_COPIES / name).exists()]
    for name, content in notebooks.items():
        digest = hashlib.sha256(content).hexdigest()
        if name in missing:
            write_atomically(_COPIES / name, content)
            origins[name] = digest
        elif origins.get(name) != digest and (_COPIES / name).read_bytes() != content:
            newer.append(name)
    write_atomically(_COPIES / _ORIGINS, json.dumps(origins, indent=2) + "\n")
    print(f"your notebooks are in {_COPIES}: {len(missing)} new, {len(notebooks) - len(missing)} as you left them")
    for name in newer:
        print(f"the course has another version of {name} than yours came from; yours is kept")
    if len(missing) < len(notebooks):
        print("to start one afresh, rename or delete your copy, and call this again; or the whole folder for all")


def _origins() -> dict[str, str]:
    """Return from what each copy was made, as far as that is known."""
    try:
        found = json.loads((_COPIES / _ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}
