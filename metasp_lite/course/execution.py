"""A notebook run from top to bottom without a browser, in a kernel of its own, and what its outputs say."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from metasp_lite import settings

LITE_CELL_SECONDS = 600
_RECHECK_SECONDS = 5.0
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):$", re.MULTILINE)
_SELF_CHECK = "self-check passed"
_ERROR_TAG = "raises-exception"  # Jupyter's own: the cell is to fail, and the run goes on
IGNORED_TAG = "nbval-ignore-output"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


# Fixed, so that neither the reader's Python version nor the name of their environment shows up in a diff.
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_LANGUAGE_INFO = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}


class RecheckingChannel(AsyncZMQSocketChannel):
    """Looks for a message every few seconds, whether or not it was woken.

    A ZMQ socket wakes its reader once, and where that is missed the message lies there until the reader looks again,
    which is at the time limit of the cell: a notebook of 20 s once took 600 s more.  By hand, since nbclient waits for
    a cell in one piece and has no setting for it.
    """

    # jupyter_client declares this method as one that does not wait, and overrides it so itself
    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Return the next message.

        Raises:
            Empty: after ``timeout`` seconds without one.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return await super().get_msg(min(left, _RECHECK_SECONDS))
            except Empty:
                if left <= _RECHECK_SECONDS:
                    raise


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels with the running interpreter, whatever the user's own "python3" kernel points to."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel specification of the ipykernel installed beside this package."""
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    # jupyter_client declares another client in the manager's base class, and overrides it so itself
    def client(self, **how: Any) -> AsyncKernelClient:  # type: ignore[override]
        """Return a client whose messages are not missed for long."""
        channels = {"shell_channel_class": RecheckingChannel, "iopub_channel_class": RecheckingChannel}
        return super().client(**channels, **how)


@dataclass(frozen=True)
class Execution:
    """One notebook after its run, with outputs up to the cell that failed, if one did."""

    notebook: NotebookNode
    seconds: float
    error: str | None

    @property
    def verdict(self) -> str:
        """What the tour prints: how many self-checks passed, or what went wrong."""
        if self.error is not None:
            return self.error
        checks = count_self_checks(self.notebook)
        cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        wanted = sum(_is_error(output) for cell in cells for output in cell.outputs)
        on_purpose = f", {wanted} error{'s' * (wanted != 1)} on purpose ({_ERROR_TAG})" if wanted else ""
        return f"{checks} self-check{'s' * (checks != 1)} passed{on_purpose}"


def find_notebooks(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks below ``folder`` in reading order, or those that ``names`` picks.

    A name is a path, a file name with or without ``.ipynb``, or the number in front of it ("01").

    Raises:
        ValueError: when there is no such notebook; the message lists those that exist.
    """
    found = sorted(
        (path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts),
        key=lambda path: (len(path.relative_to(folder).parts), path),
    )
    if not found:
        raise ValueError(f"there is no notebook in {folder}; {settings.INSTALL_CHECKOUT}")
    known = {path: path.relative_to(folder).with_suffix("").as_posix() for path in found}
    picked = set()
    for name in names:
        wanted = name.removesuffix(".ipynb")
        hits = {
            path
            for path, stem in known.items()
            if stem == wanted or stem.startswith(f"{wanted}-") or os.path.realpath(path) == os.path.realpath(name)
        }
        if not hits:
            raise ValueError(f"there is no notebook {name!r}; there are: {', '.join(known.values())}")
        picked |= hits
    return [path for path in found if path in picked or not names]


def execute(path: Path, cell_seconds: int | None = LITE_CELL_SECONDS) -> Execution:
    """Run one notebook in a kernel of its own, started in the notebook's folder, up to the first cell that fails.

    A file that is no notebook has failed before its first cell; one where an error stands in the output of a cell that
    went on (from a thread, in a widget, shown by hand) has failed, too.  A cell with the tag ``raises-exception`` may.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as problem:  # whatever a file that is no notebook, or cannot be read, makes of nbformat
        return _unreadable(path, problem)
    code_cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for index in code_cells:
        notebook.cells[index].update(outputs=[], execution_count=None)
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        timeout=cell_seconds,
        iopub_timeout=60,
        coalesce_streams=True,
        record_timing=False,
        shutdown_kernel="immediate",  # all cells are done by then: a kernel that is slow to leave has nothing to save
        extra_arguments=["--log-level=CRITICAL"],  # the kernel's own log: what the cells print comes another way
        resources={"metadata": {"path": str(path.parent)}},
    )
    # with a backend of the user's own choice the figures would not appear in the notebook
    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"} | settings.for_another_folder()
    start, error, number = time.monotonic(), None, 0
    try:
        with (
            client.setup_kernel(env=env),
            tqdm(code_cells, desc=path.stem, unit="cell", leave=False, disable=None) as bar,
        ):
            try:
                for number, index in enumerate(bar, start=1):
                    client.execute_cell(notebook.cells[index], index, execution_count=number)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
                summary = _what_stopped(problem, cell_seconds)
                error = f"FAILED in code cell {number} of {len(code_cells)}: {summary}"
                if not isinstance(problem, CellExecutionError):  # else the kernel has sent the traceback itself
                    _record_error(notebook.cells[index], problem, summary)
    except RuntimeError as problem:
        error = f"FAILED {f'in code cell {number}' if number else 'before its first cell'}: {_first_line(problem)}"
    seconds = time.monotonic() - start
    if error is None:
        error = _shown_error(notebook, code_cells, client.widget_state)
    tidy(notebook)
    if error is None and not count_self_checks(notebook):
        error = "FAILED: no self-check ran"
    return Execution(notebook, seconds, error)


def _unreadable(path: Path, problem: Exception) -> Execution:
    error = f"FAILED before its first cell: {path.name} cannot be read as a notebook ({_first_line(problem)[:200]})"
    return Execution(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(error)]), 0.0, error)


def _what_stopped(problem: Exception, cell_seconds: int | None) -> str:
    """One line on an error of a cell."""
    match problem:
        case CellExecutionError():
            return f"{problem.ename}: {_first_line(problem.evalue)}".removesuffix(": ")
        case CellTimeoutError():
            return f"it ran for more than {cell_seconds} s"
        case _:
            return "its kernel died, most often for want of memory"


def _shown_error(notebook: NotebookNode, code_cells: Sequence[int], widgets: Mapping[str, Any]) -> str | None:
    """Say which output shows an error that did not stop its cell and is not there on purpose, None where none does."""
    for number, index in enumerate(code_cells, start=1):
        cell = notebook.cells[index]
        shown = [output for output in cell.outputs if _is_error(output)]
        if shown and _ERROR_TAG not in cell.metadata.get("tags", []):
            return f"FAILED: the output of code cell {number} of {len(code_cells)} shows {_in_words(shown[0])}"
    shown = [output for state in widgets.values() for output in state.get("outputs", ()) if _is_error(output)]
    return f"FAILED: a widget shows {_in_words(shown[0])}" if shown else None


def _is_error(output: Mapping[str, Any]) -> bool:
    """Whether an output is an error, or what a thread that failed has printed."""
    printed = output.get("text", "") if output.get("name") == "stderr" else ""
    return output["output_type"] == "error" or _TRACEBACK.search(printed) is not None


def _in_words(error: Mapping[str, Any]) -> str:
    if error["output_type"] == "error":
        return f"{error['ename']}: {_first_line(error['evalue'])}".removesuffix(": ")
    _, traceback = _TRACEBACK.split(error["text"], maxsplit=1)
    return next((line for line in traceback.splitlines() if line and not line.startswith(" ")), "a traceback")


def _first_line(text: object) -> str:
    """Return the first line of a message that has something on it."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")


def _record_error(cell: NotebookNode, problem: Exception, summary: str) -> None:
    """Write into a cell what its kernel could no longer say, so that the executed copy shows it."""
    name = type(problem).__name__
    cell.outputs.append(nbformat.v4.new_output("error", ename=name, evalue=summary, traceback=[f"{name}: {summary}"]))


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Drop in place all that differs from machine to machine or from run to run, and widgets, which need a kernel.

    A widget's view is dead once its kernel has gone: JupyterLab would show "model not found" for it, and a progress
    bar would stay at 0 %. Where the cell's output is not compared, the whole output goes, else its live half.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata.update(kernelspec=KERNELSPEC, language_info=_LANGUAGE_INFO)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        if IGNORED_TAG in cell.metadata.get("tags", []):
            cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET_VIEW, None)
    return notebook


def count_self_checks(notebook: NotebookNode) -> int:
    """Count the lines in the outputs that report a passed self-check."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return sum(line.startswith(_SELF_CHECK) for text in texts for line in text.splitlines())
