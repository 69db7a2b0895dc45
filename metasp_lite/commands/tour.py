"""Run the notebooks from top to bottom without a browser: ``python -m metasp_lite tour``."""

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from metasp_lite import settings
from metasp_lite.commands.options import named

NOTEBOOKS_DIR = settings.PROJECT_DIR / "notebooks"
_OUT_DIR = settings.PROJECT_DIR / "build" / "tour"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tour``."""
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a name, or its number: 01 (default: all)")
    parser.add_argument("--store", action="store_true", help="also write the outputs back into the notebooks")
    parser.add_argument("--out", type=named, default=_OUT_DIR, metavar="DIR", help="where copies and HTML pages go")


def main(arguments: argparse.Namespace) -> int:
    """Run the notebooks; the status is 1 when any failed, and 130 after Ctrl-C, which stops the kernel first."""
    from metasp_lite import results
    from metasp_lite.course.execution import find_notebooks
    from metasp_lite.course.pages import INDEX

    out = _checked_out(arguments.out)
    settings.data_dir()  # one that is not there would stop every notebook
    notebooks = find_notebooks(NOTEBOOKS_DIR, arguments.notebooks)
    _require_writable(notebooks, out, store=arguments.store)
    # the run times that the README quotes
    record = results.place("tour.json") if arguments.store and not arguments.notebooks else None
    try:
        runs, failed = _run_all(notebooks, out, store=arguments.store)
    except KeyboardInterrupt:
        print("\nstopped; the notebook that was running has left nothing behind", file=sys.stderr)
        return 130
    print(f"{len(notebooks) - failed} of {len(notebooks)} notebooks passed; copies and HTML pages: {out / INDEX}")
    if record and not failed:
        results.write(record, {"settings": {"profile": settings.profile()}, "runs": runs})
    return int(failed > 0)


def _checked_out(asked: Path) -> Path:
    """Return the folder for copies and pages.

    Raises:
        ValueError: where they would lie among the notebooks or over them, or where a file is.
    """
    if asked == Path():
        raise ValueError("--out . is the current folder; name one of its own for the copies and pages")
    out, notebooks = (Path(os.path.realpath(each)) for each in (settings.expanded(asked), NOTEBOOKS_DIR))
    if out.is_relative_to(notebooks) or notebooks.is_relative_to(out):
        raise ValueError(
            f"--out {asked} would put copies among or over the notebooks in {notebooks}; give another folder"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {asked} is a file; give a folder for the copies and pages")
    return out


def _require_writable(notebooks: Sequence[Path], out: Path, *, store: bool) -> None:
    """Refuse before the first notebook runs what could not be kept afterwards."""
    from metasp_lite.course.pages import INDEX, MATHJAX, places
    from metasp_lite.files import require_writable

    require_writable(out / MATHJAX / "MathJax.js")
    require_writable(out / INDEX)
    for path in notebooks:
        for target in (*places(out, path.relative_to(NOTEBOOKS_DIR)), *([path] if store and path.is_file() else [])):
            require_writable(target)


def _run_all(notebooks: Sequence[Path], out: Path, *, store: bool) -> tuple[list[dict[str, object]], int]:
    """Run the notebooks one after the other and print a line for each; return what was measured, and how many failed.

    Copies with outputs and HTML pages go to ``out``, beside the page that lists the whole course; with ``store`` the
    outputs of a notebook that passed also go back into its own file, and its README figures into the folder
    ``figures``.
    """
    from metasp_lite.course.execution import LITE_CELL_SECONDS, count_self_checks, execute, find_notebooks
    from metasp_lite.course.pages import MATHJAX, figures, keep, keep_index, listed, to_ipynb
    from metasp_lite.files import write_atomically

    mathjax = _mathjax()
    index = {path: listed(path, path.relative_to(NOTEBOOKS_DIR)) for path in find_notebooks(NOTEBOOKS_DIR)}
    cell_seconds = LITE_CELL_SECONDS if settings.profile() == "lite" else None
    runs: list[dict[str, object]] = []
    failed = 0
    for path in notebooks:
        execution = execute(path, cell_seconds)
        if not runs:
            shutil.copytree(mathjax, out / MATHJAX, dirs_exist_ok=True)
        keep(execution, out, path.relative_to(NOTEBOOKS_DIR), path.parent)
        index[path] = dataclasses.replace(index[path], seconds=execution.seconds, verdict=execution.verdict)
        keep_index(list(index.values()), out)
        failed += execution.error is not None
        if store and execution.error is None:
            write_atomically(path, to_ipynb(execution.notebook))
            for number, png in enumerate(figures(execution.notebook), start=1):
                name = f"{path.stem}{f'-{number}' * (number > 1)}.png"
                write_atomically(NOTEBOOKS_DIR / "figures" / name, png)
        name, checks = path.relative_to(NOTEBOOKS_DIR).with_suffix("").as_posix(), count_self_checks(execution.notebook)
        runs.append({"notebook": name, "wall_seconds": round(execution.seconds), "self_checks": checks})
        print(f"{name}  {execution.seconds:.0f} s  {execution.verdict}", flush=True)
    return runs, failed


def _mathjax() -> Path:
    """Return the folder of the MathJax that is installed, without importing the server it is made for."""
    package = find_spec("jupyter_server_mathjax")
    if package is None or package.origin is None:
        raise FileNotFoundError("jupyter_server_mathjax is not installed; set up the environment again")
    return Path(package.origin).parent / "static"
