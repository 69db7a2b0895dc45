"""Run the notebooks from top to bottom without a browser: ``python -m metasp_lite tour``."""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from metasp_lite import results, settings
from metasp_lite.course.execution import LITE_CELL_SECONDS, count_self_checks, execute, find_notebooks
from metasp_lite.course.pages import MATHJAX, figures, keep, to_ipynb
from metasp_lite.files import write_atomically

NOTEBOOKS_DIR = settings.PROJECT_DIR / "notebooks"
OUT_DIR = settings.PROJECT_DIR / "build" / "tour"
RECORD = results.RESULTS_DIR / "tour.json"  # the run times that the README quotes


def tour(notebooks: Sequence[Path], folder: Path, out: Path, store: bool = False, record: Path | None = None) -> int:
    """Run the notebooks one after the other, print a line for each, and return how many failed.

    Copies with outputs and HTML pages go to ``out``; with ``store`` the outputs of a notebook that passed also go
    back into its own file, and its README figures into ``folder/figures``. When all passed, their run times go to
    ``record``.
    """
    cell_seconds = LITE_CELL_SECONDS if settings.profile() == "lite" else None
    failed, runs = 0, []
    for path in notebooks:
        execution = execute(path, cell_seconds)
        if not runs:
            mathjax = Path(find_spec("jupyter_server_mathjax").origin).parent / "static"
            shutil.copytree(mathjax, out / MATHJAX, dirs_exist_ok=True)
        keep(execution, out, path.relative_to(folder))
        failed += execution.error is not None
        if store and execution.error is None:
            write_atomically(path, to_ipynb(execution.notebook))
            for number, png in enumerate(figures(execution.notebook), start=1):
                write_atomically(folder / "figures" / f"{path.stem}{f'-{number}' * (number > 1)}.png", png)
        name, checks = path.relative_to(folder).with_suffix("").as_posix(), count_self_checks(execution.notebook)
        runs.append({"notebook": name, "wall_seconds": round(execution.seconds), "self_checks": checks})
        print(f"{name}  {execution.seconds:.0f} s  {execution.verdict}", flush=True)
    print(f"{len(notebooks) - failed} of {len(notebooks)} notebooks passed; copies and HTML pages: {out}")
    if record is not None and not failed:
        results.write(record, {"settings": {"profile": settings.profile()}, "runs": runs})
    return failed


@contextlib.contextmanager
def stop_quietly() -> Iterator[None]:
    """Turn Ctrl-C into one line and the customary exit status 130; by then the kernel has been stopped."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped; the notebook that was running has left nothing behind", file=sys.stderr)
        raise SystemExit(130) from None


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``tour`` and return its exit status: 1 if any notebook failed."""
    notebooks = find_notebooks(NOTEBOOKS_DIR, arguments.notebooks)
    record = RECORD if arguments.store and not arguments.notebooks else None
    with stop_quietly():
        return int(tour(notebooks, NOTEBOOKS_DIR, arguments.out.resolve(), arguments.store, record) > 0)


def add_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand ``tour``."""
    parser = subparsers.add_parser("tour", help="run the notebooks without a browser", description=__doc__)
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a name, or its number: 01 (default: all)")
    parser.add_argument("--store", action="store_true", help="also write the outputs back into the notebooks")
    parser.add_argument("--out", type=Path, default=OUT_DIR, metavar="DIR", help="where copies and HTML pages go")
    parser.set_defaults(run=run)
