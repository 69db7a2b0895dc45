"""Run the notebooks from top to bottom without a browser: ``python -m metasp_lite tour``."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from metasp_lite import settings

NOTEBOOKS_DIR = settings.PROJECT_DIR / "notebooks"
_OUT_DIR = settings.PROJECT_DIR / "build" / "tour"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tour``."""
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a name, or its number: 01 (default: all)")
    parser.add_argument("--store", action="store_true", help="also write the outputs back into the notebooks")
    parser.add_argument("--out", type=Path, default=_OUT_DIR, metavar="DIR", help="where copies and HTML pages go")


def main(arguments: argparse.Namespace) -> int:
    """Run the notebooks; the status is 1 when any failed, and 130 after Ctrl-C, which stops the kernel first."""
    from metasp_lite import results
    from metasp_lite.course.execution import find_notebooks

    notebooks, out = find_notebooks(NOTEBOOKS_DIR, arguments.notebooks), arguments.out.resolve()
    try:
        runs, failed = _run_all(notebooks, out, store=arguments.store)
    except KeyboardInterrupt:
        print("\nstopped; the notebook that was running has left nothing behind", file=sys.stderr)
        return 130
    print(f"{len(notebooks) - failed} of {len(notebooks)} notebooks passed; copies and HTML pages: {out}")
    if arguments.store and not arguments.notebooks and not failed:  # the run times that the README quotes
        record = {"settings": {"profile": settings.profile()}, "runs": runs}
        results.write(results.RESULTS_DIR / "tour.json", record)
    return int(failed > 0)


def _run_all(notebooks: Sequence[Path], out: Path, *, store: bool) -> tuple[list[dict[str, object]], int]:
    """Run the notebooks one after the other and print a line for each; return what was measured, and how many failed.

    Copies with outputs and HTML pages go to ``out``; with ``store`` the outputs of a notebook that passed also go
    back into its own file, and its README figures into the folder ``figures``.
    """
    from metasp_lite.course.execution import LITE_CELL_SECONDS, count_self_checks, execute
    from metasp_lite.course.pages import MATHJAX, figures, keep, to_ipynb
    from metasp_lite.files import write_atomically

    cell_seconds = LITE_CELL_SECONDS if settings.profile() == "lite" else None
    runs: list[dict[str, object]] = []
    failed = 0
    for path in notebooks:
        execution = execute(path, cell_seconds)
        if not runs:
            shutil.copytree(_mathjax(), out / MATHJAX, dirs_exist_ok=True)
        keep(execution, out, path.relative_to(NOTEBOOKS_DIR))
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
