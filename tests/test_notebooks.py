"""Guards over the stored notebooks: each promise the course makes about them, and a notebook that breaks it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from helpers.image_sets import link_first
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from metasp_lite import settings
from metasp_lite.course import execution, pages

FOLDER = settings.PROJECT_DIR / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
MAX_BYTES = 1_500_000
MAX_LINES = 12
PRIVATE_PATH = re.compile(r"(?<![\w.])(/(?:home|Users|root|work|tmp|opt|mnt|private)/|[A-Z]:\\)[\w.\\/-]*")

Guard = Callable[[NotebookNode], str | None]  # what is wrong with the notebook, or nothing


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def count_lines(source: str) -> int:
    """Lines of code: comments, blank lines and imports take no thought and are not counted."""
    python = "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    imports = {
        number
        for node in ast.walk(ast.parse(python))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(python.splitlines(), start=1)
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in imports for number, line in lines
    )


def is_executed_in_order(notebook: NotebookNode) -> str | None:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return None if counts and counts == list(range(1, len(counts) + 1)) else f"execution counts {counts}"


def has_no_error(notebook: NotebookNode) -> str | None:
    errors = [output.ename for output in outputs(notebook) if output.output_type == "error"]
    return f"stored errors {errors}" if errors else None


def has_no_widget_state(notebook: NotebookNode) -> str | None:
    return "metadata.widgets is stored" if "widgets" in notebook.metadata else None


def names_the_common_kernel(notebook: NotebookNode) -> str | None:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return None if name == "python3" else f"kernelspec {name!r}"


def is_small(notebook: NotebookNode) -> str | None:
    size = len(pages.to_ipynb(notebook).encode())
    return f"{size:,} bytes" if size > MAX_BYTES else None


def names_no_private_path(notebook: NotebookNode) -> str | None:
    def words(value: object) -> str:
        """All text below a value but images, whose base64 could hold anything."""
        if isinstance(value, dict):
            return "\n".join(words(item) for key, item in value.items() if not str(key).startswith("image/"))
        return "\n".join(map(words, value)) if isinstance(value, list) else str(value)

    found = PRIVATE_PATH.search(words([[cell.source, cell.get("outputs", [])] for cell in notebook.cells]))
    return f"a path of one machine: {found[0]}" if found else None


def checks_itself(notebook: NotebookNode) -> str | None:
    return None if execution.count_self_checks(notebook) else "no self-check in the outputs"


def has_short_cells(notebook: NotebookNode) -> str | None:
    long = {number: count_lines(cell.source) for number, cell in enumerate(code_cells(notebook), start=1)}
    long = {number: lines for number, lines in long.items() if lines > MAX_LINES}
    return f"lines of code by code cell, {MAX_LINES} allowed: {long}" if long else None


def opens_with_its_title(notebook: NotebookNode) -> str | None:
    first = notebook.cells[0]
    return None if first.cell_type == "markdown" and first.source.startswith("# ") else f"opens with {first.source!r}"


def shows_a_figure(notebook: NotebookNode) -> str | None:
    return None if any("image/png" in output.get("data", {}) for output in outputs(notebook)) else "no figure"


GUARDS: list[Guard] = [
    is_executed_in_order,
    has_no_error,
    has_no_widget_state,
    names_the_common_kernel,
    is_small,
    names_no_private_path,
    checks_itself,
    has_short_cells,
    opens_with_its_title,
    shows_a_figure,
]


def test_the_course_has_notebooks():
    """Without one, every test below would pass by looking at nothing."""
    assert NOTEBOOKS, f"no notebook in {FOLDER}"


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook(path: Path, guard: Guard):
    assert guard(nbformat.read(path, as_version=4)) is None


# --- the guards themselves: a notebook that passes all of them, then one change that each must notice -------------


def sound() -> NotebookNode:
    figure = new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"})
    check = new_output("stream", text="self-check passed: one is one\n")
    cells = [
        new_markdown_cell("# A title"),
        new_code_cell("import os\n\n# why\nprint(1)", execution_count=1, outputs=[check]),
        new_code_cell("\n".join(f"x{i} = {i}" for i in range(MAX_LINES)), execution_count=2, outputs=[figure]),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": execution.KERNELSPEC})


def skip_a_count(notebook):
    notebook.cells[2].execution_count = 3


def leave_a_cell_unrun(notebook):
    notebook.cells[1].execution_count = None


def store_an_error(notebook):
    notebook.cells[1].outputs.append(new_output("error", ename="ValueError", evalue="", traceback=[]))


def store_a_widget(notebook):
    notebook.metadata["widgets"] = {}


def name_another_kernel(notebook):
    notebook.metadata["kernelspec"] = {"name": "mine", "display_name": "mine"}


def grow(notebook):
    notebook.cells[2].outputs[0].data["image/png"] = "A" * MAX_BYTES


def print_a_path(notebook):
    notebook.cells[1].outputs.append(new_output("stream", text="saved to /home/ada/course/x.png"))


def write_a_path(notebook):
    notebook.cells[1].source = "open('/tmp/x')"


def check_nothing(notebook):
    notebook.cells[1].outputs = []


def add_a_line(notebook):
    notebook.cells[2].source += "\nprint(x1)"


def lose_the_title(notebook):
    notebook.cells[0].source = "## A section"


def lose_the_figure(notebook):
    del notebook.cells[2].outputs[0].data["image/png"]


@pytest.mark.parametrize(
    ("guard", "damage"),
    [
        (is_executed_in_order, skip_a_count),
        (is_executed_in_order, leave_a_cell_unrun),
        (has_no_error, store_an_error),
        (has_no_widget_state, store_a_widget),
        (names_the_common_kernel, name_another_kernel),
        (is_small, grow),
        (names_no_private_path, print_a_path),
        (names_no_private_path, write_a_path),
        (checks_itself, check_nothing),
        (has_short_cells, add_a_line),
        (opens_with_its_title, lose_the_title),
        (shows_a_figure, lose_the_figure),
    ],
    ids=lambda value: value.__name__,
)
def test_each_guard_notices_its_own_damage_and_no_other_does(guard, damage):
    notebook = sound()
    assert [check.__name__ for check in GUARDS if check(notebook)] == []
    damage(notebook)
    assert [check for check in GUARDS if check(notebook)] == [guard]


def test_web_addresses_and_relative_paths_are_not_private():
    notebook = sound()
    notebook.cells[0].source += "\n[paper](https://example.org/home/x) notebooks/../tmp/x data/work/y"
    assert names_no_private_path(notebook) is None


def test_imports_comments_blank_lines_and_magics_do_not_upset_the_line_count():
    source = "%matplotlib inline\nfrom a import (\n    b,\n    c,\n)\n\n# why\nx = 1  # counted\n"
    assert count_lines(source) == 2


def test_nbval_reports_a_dead_kernel_within_seconds_and_passes_a_sound_notebook(tmp_path):
    """Strict nbval under the project's own pytest settings; alone it would wait the 300 s a cell may take."""
    shutil.copy(FOLDER / "conftest.py", tmp_path)
    good = new_notebook(cells=[new_code_cell("1 + 1", execution_count=1)])
    good.cells[0].outputs = [new_output("execute_result", data={"text/plain": "2"}, execution_count=1)]
    wrong = new_notebook(cells=[new_code_cell("1 + 2", execution_count=1, outputs=good.cells[0].outputs)])
    dead = new_notebook(cells=[new_code_cell("import os; os._exit(1)", execution_count=1)])
    for name, notebook in {"good": good, "wrong": wrong, "dead": dead}.items():
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-c", str(settings.PROJECT_DIR / "pyproject.toml"), "--rootdir", "."]
    command += ["-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "--nbval-cell-timeout", "300", "."]

    start = time.monotonic()
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)

    assert time.monotonic() - start < 150  # three kernels on a busy machine, half of the cell's limit
    assert run.returncode == 1
    assert "the kernel died" in run.stdout
    assert "2 failed, 1 passed" in run.stdout
    assert "good.ipynb ." in run.stdout


def edited(path: Path, edits: dict[str, str], tmp_path: Path) -> Path:
    """Copy a notebook with other lines in place of some."""
    notebook = nbformat.read(path, as_version=4)
    for line, other in edits.items():
        (cell,) = [cell for cell in code_cells(notebook) if line in cell.source]
        cell.source = cell.source.replace(line, other)
    nbformat.write(notebook, tmp_path / path.name)
    return tmp_path / path.name


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts the first real images of each class in the place of the data folder; the others would only be decoded."""

    def take(name: str, **counts: int) -> None:
        whole = Path(os.environ.get("METASP_DATA") or "/nowhere").absolute() / name
        if not whole.is_dir():
            pytest.skip(f"needs METASP_DATA with the image folder {name}")
        link_first(whole, tmp_path / "data" / name, **counts)
        monkeypatch.setenv("METASP_DATA", str(tmp_path / "data"))
        monkeypatch.setenv("METASP_CACHE", str(tmp_path / "cache"))

    return take


@pytest.mark.slow
def test_notebook_04_runs_on_real_split_cifar_10(tmp_path: Path, real: Callable[..., None]):
    """One line chooses the stream; others shorten the runs, which would take half an hour otherwise."""
    real("cifar10", train=50, test=50)
    edits = {
        'stream_name = "split-fashion-mnist"': 'stream_name = "split-cifar10"',
        "changes = {}": 'changes = {"epochs": 5, "per_class": 50}',
        # of the bundled images, which the notebook's own run has at full length
        'overrides={"variant": variant}': 'overrides={"variant": variant, "epochs": 2, "late_epochs": 1}',
    }
    done = execution.execute(edited(FOLDER / "06-training-metasp.ipynb", edits, tmp_path))
    assert done.error is None
    assert any("network lite-cnn" in output.get("text", "") for output in outputs(done.notebook))


@pytest.mark.slow
def test_notebook_08_runs_on_real_mnist(tmp_path: Path, real: Callable[..., None]):
    """One line chooses the data; all its claims are checked on the digits, too.

    Notebook 09 has the same stages, and its claims on the digits are those of the stored study ``updated``.
    """
    real("mnist", train=250, test=100)
    edits = {'data_name = "fashion-mnist"': 'data_name = "mnist"'}
    path = edited(FOLDER / "08-where-did-the-finetuned-model-learn-that.ipynb", edits, tmp_path)
    assert execution.execute(path).error is None
