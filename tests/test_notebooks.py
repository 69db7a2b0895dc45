"""Guards over the stored notebooks: each promise the course makes about them, and a notebook that breaks it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from helpers.image_sets import link_first
from helpers.prose_numbers import unsupported
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from metasp_lite import settings
from metasp_lite.course import execution, pages

FOLDER = settings.PROJECT_DIR / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
MAX_BYTES = 1_500_000
MAX_LINES = 12
MAX_COLUMNS = 100  # more are cut off in a window of 1280 pixels
TABLE_HEAD = "Question", "You will learn", "You need", "Time"
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


def opens_with_its_table(notebook: NotebookNode) -> str | None:
    rows = re.findall(r"(?m)^\| \*\*(.+?)\*\* \|", notebook.cells[0].source)
    return None if tuple(rows[: len(TABLE_HEAD)]) == TABLE_HEAD else f"the first cell's table has the rows {rows}"


def has_lines_that_fit(notebook: NotebookNode) -> str | None:
    long = {
        number: max(map(len, [*cell.source.splitlines(), ""]))
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
    }
    long = {number: columns for number, columns in long.items() if columns > MAX_COLUMNS}
    return f"columns of code by cell, {MAX_COLUMNS} allowed: {long}" if long else None


def links(notebook: NotebookNode) -> list[str]:
    """Where the prose leads to, but for code."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    plain = re.sub(r"```.*?```|`[^`]*`", "", prose, flags=re.DOTALL)
    return re.findall(r"\]\(\s*<?([^)\s>]+)", plain) + re.findall(r'(?:href|src)="([^"]+)"', plain)


def leads_to_what_is_there(notebook: NotebookNode) -> str | None:
    """Notebooks and other files; a heading behind # is looked for in this notebook or in the one that is named."""
    lost = []
    for link in links(notebook):
        path, _, heading = link.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        target = FOLDER / unquote(path)
        if not target.exists():
            lost.append(link)
        elif heading and (not path or path.endswith(".ipynb")):
            seen = nbformat.read(target, as_version=4) if path else notebook
            titles = re.findall(r"(?m)^#+ (.*?)\s*$", "\n".join(cell.source for cell in seen.cells))
            lost += [] if unquote(heading) in {title.replace(" ", "-") for title in titles} else [link]
    return f"links that lead nowhere: {lost}" if lost else None


@cache
def course() -> dict[str, NotebookNode]:
    """The notebooks by their numbers."""
    return {path.name[:2]: nbformat.read(path, as_version=4) for path in NOTEBOOKS}


def quotes_what_it_shows(notebook: NotebookNode) -> str | None:
    missing = unsupported(notebook, course())
    return "numbers that nothing stands behind:\n  " + "\n  ".join(missing) if missing else None


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
    opens_with_its_table,
    has_lines_that_fit,
    leads_to_what_is_there,
    quotes_what_it_shows,
    shows_a_figure,
]


def test_the_course_has_notebooks():
    """Without one, every test below would pass by looking at nothing."""
    assert NOTEBOOKS, f"no notebook in {FOLDER}"


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook(path: Path, guard: Guard):
    wrong = guard(nbformat.read(path, as_version=4))
    assert wrong is None, wrong


def title(notebook: NotebookNode) -> str:
    return notebook.cells[0].source.partition("\n")[0].removeprefix("# ")


def neighbours(paths: list[Path], titles: list[str], position: int) -> str:
    """Return the last line of the notebook at ``position``: the way to the one before it and to the one behind it."""
    both = {"Previous": position - 1, "Next": position + 1}
    return " · ".join(
        f"**{way}:** [{titles[other]}]({paths[other].relative_to(FOLDER).as_posix()})"
        for way, other in both.items()
        if 0 <= other < len(paths)
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_stands_in_its_place(path: Path):
    """Its title begins with the number of its file, and its last line leads to its neighbours by their titles."""
    notebooks = [nbformat.read(one, as_version=4) for one in NOTEBOOKS]
    position = NOTEBOOKS.index(path)
    assert title(notebooks[position]).startswith(f"{path.name[:2]} · ")
    last = notebooks[position].cells[-1]
    assert last.cell_type == "markdown"
    assert last.source.rstrip().splitlines()[-1] == neighbours(NOTEBOOKS, [*map(title, notebooks)], position)


def test_neighbours_of_three_notebooks():
    paths, titles = [FOLDER / f"{name}.ipynb" for name in "abc"], ["01 · A", "02 · B?", "04 · C"]
    assert [neighbours(paths, titles, position) for position in range(3)] == [
        "**Next:** [02 · B?](b.ipynb)",
        "**Previous:** [01 · A](a.ipynb) · **Next:** [04 · C](c.ipynb)",
        "**Previous:** [02 · B?](b.ipynb)",
    ]


# --- the guards themselves: a notebook that passes all of them, then one change that each must notice -------------


def sound() -> NotebookNode:
    figure = new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"})
    check = new_output("stream", text="self-check passed: one is one\n")
    cells = [
        new_markdown_cell("# A title\n\n| | |\n|---|---|\n" + "\n".join(f"| **{row}** | 99 |" for row in TABLE_HEAD)),
        new_code_cell("import os\n\n# why\nprint(1)", execution_count=1, outputs=[check]),
        new_code_cell("\n".join(f"x{i} = {i}" for i in range(MAX_LINES)), execution_count=2, outputs=[figure]),
        new_markdown_cell("## 2 · The end\n\nFrom [figures](figures), [here](#2-·-The-end): one."),
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
    notebook.cells[0].source = notebook.cells[0].source.removeprefix("# ")


def lose_a_row(notebook):
    notebook.cells[0].source = notebook.cells[0].source.replace("Time", "Hours")


def write_a_long_line(notebook):
    notebook.cells[1].source += "  # " + "x" * MAX_COLUMNS


def lead_to_no_notebook(notebook):
    notebook.cells[3].source = "[next](99-later.ipynb)"


def lead_to_no_heading(notebook):
    notebook.cells[3].source = "## 3 · The end\n\n[here](#2-·-The-end)"


def quote_another_number(notebook):
    notebook.cells[3].source += " The median is 0.47."


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
        (opens_with_its_table, lose_a_row),
        (has_lines_that_fit, write_a_long_line),
        (leads_to_what_is_there, lead_to_no_notebook),
        (leads_to_what_is_there, lead_to_no_heading),
        (quotes_what_it_shows, quote_another_number),
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
def test_notebook_06_runs_on_real_split_cifar_10(tmp_path: Path, real: Callable[..., None]):
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
