"""The command that runs the notebooks, on small ones that import nothing heavy."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from helpers.small_notebooks import CHECK, write_notebook

from metasp_lite import __main__, results
from metasp_lite.commands import tour

DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
DRAW = f"from IPython.display import display\ndisplay({{'image/png': {PIXEL!r}, 'text/plain': 'pixel'}}, raw=True)"
SHOW_WIDGET = (
    "from IPython.display import display\n"
    "view = {'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': 'slider'}\n"
    "display(view, raw=True)"
)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An empty course, in place of the project's own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(tour, "NOTEBOOKS_DIR", folder)
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    monkeypatch.delenv("METASP_PROFILE", raising=False)
    return folder


def run_tour(course: Path, *arguments: str) -> int:
    return __main__.main(["tour", *arguments, "--out", str(course.parent / "out")])


def test_a_failing_notebook_does_not_hide_the_next_one(course, capsys):
    write_notebook(course, "01-bad", CHECK, "raise ValueError('boom\\nand more')", "1")
    write_notebook(course, "02-good", CHECK + "\nimport os; print(os.environ.get('MPLBACKEND'), os.getcwd())", CHECK)

    assert run_tour(course) == 1

    bad, good, end = capsys.readouterr().out.splitlines()
    assert bad.startswith("01-bad")
    assert "FAILED in code cell 2 of 3: ValueError: boom" in bad
    assert good.startswith("02-good")
    assert good.endswith("2 self-checks passed")
    assert end.startswith("1 of 2 notebooks passed")
    out = course.parent / "out"
    assert {path.name for path in out.iterdir()} == {
        "01-bad.ipynb", "01-bad.html", "02-good.ipynb", "02-good.html", "mathjax",
    }  # fmt: skip
    assert (out / "mathjax" / "MathJax.js").exists()
    assert read(out / "01-bad.ipynb").cells[2].outputs[0].ename == "ValueError"
    assert "boom" in (out / "01-bad.html").read_text(encoding="utf-8")
    assert str(course) in read(out / "02-good.ipynb").cells[1].outputs[0].text  # the kernel works in its folder


def test_a_notebook_that_checks_nothing_fails(course, capsys):
    write_notebook(course, "01-silent", "print('all is well')")
    assert run_tour(course) == 1
    assert "FAILED: no self-check ran" in capsys.readouterr().out


def test_a_dead_kernel_is_reported_at_once(course, capsys):
    """Well below the cell's own limit of 600 s; 30 s allows for a slow start of the kernel."""
    write_notebook(course, "01-dead", CHECK, DIE)
    start = time.monotonic()
    assert run_tour(course) == 1
    assert time.monotonic() - start < 30
    assert "FAILED in code cell 2 of 2: its kernel died" in capsys.readouterr().out
    assert read(course.parent / "out" / "01-dead.ipynb").cells[2].outputs[0].ename == "DeadKernelError"


def test_store_writes_clean_outputs_and_figures_back(course):
    path = write_notebook(course, "01-good", CHECK, SHOW_WIDGET, DRAW, tags=("readme-figure",))
    notebook = read(path)
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    notebook.metadata["kernelspec"] = {"name": "mine", "display_name": "Mine"}
    notebook.cells[1].metadata["execution"] = {"iopub.status.busy": "2020"}
    nbformat.write(notebook, path)

    assert run_tour(course, "--store") == 0

    stored = read(path)
    assert [cell.execution_count for cell in stored.cells[1:]] == [1, 2, 3]
    assert "widgets" not in stored.metadata
    assert stored.metadata.kernelspec.name == "python3"
    assert "version" not in stored.metadata.language_info
    assert not any("execution" in cell.metadata for cell in stored.cells)
    assert stored.cells[2].outputs[0].data == {"text/plain": "slider"}
    assert (course / "figures" / "01-good.png").read_bytes().startswith(b"\x89PNG")
    assert not list(course.rglob("*.part"))
    (run,) = json.loads((course.parent / "tour.json").read_text(encoding="utf-8"))["runs"]
    assert (run["notebook"], run["self_checks"]) == ("01-good", 1)


def test_without_store_or_after_a_failure_the_notebook_is_untouched(course):
    good, bad = write_notebook(course, "01-good", CHECK), write_notebook(course, "02-bad", CHECK, "1 / 0")
    before = good.read_bytes(), bad.read_bytes()
    assert run_tour(course, "01") == 0
    assert good.read_bytes() == before[0]
    assert run_tour(course, "--store", "02-bad") == 1
    assert bad.read_bytes() == before[1]
    assert not (course / "figures").exists()


def test_an_unknown_name_lists_those_that_exist(course, capsys):
    write_notebook(course, "01-a", CHECK)
    assert run_tour(course, "7") == 1
    assert capsys.readouterr().err == "metasp_lite: there is no notebook '7'; there are: 01-a\n"


def test_a_course_without_notebooks_is_an_error(course, capsys):
    assert run_tour(course) == 1
    assert "there is no notebook in" in capsys.readouterr().err


def test_ctrl_c_stops_the_kernel_and_leaves_nothing_behind(course):
    """The cell writes its kernel's process id, then sleeps; after SIGINT that process must be gone."""
    path = write_notebook(
        course, "01-slow", "import os; open('pid', 'w').write(str(os.getpid()))", "import time; time.sleep(60)"
    )
    code = (
        "import sys; from pathlib import Path; from metasp_lite import __main__\n"
        "from metasp_lite.commands import tour\n"
        "tour.NOTEBOOKS_DIR = Path(sys.argv[1]).parent\n"
        "sys.exit(__main__.main(['tour', '--store', '--out', str(tour.NOTEBOOKS_DIR.parent / 'out'), '01-slow']))"
    )
    before = path.read_bytes()
    command = [sys.executable, "-c", code, str(path)]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # a shell's background job, and all that it starts, would ignore SIGINT
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **streams, preexec_fn=heed) as process:
        pid = course / "pid"
        deadline = time.monotonic() + 60
        while not (pid.exists() and pid.read_text(encoding="utf-8")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().startswith("stopped;")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="utf-8")), 0)
    assert path.read_bytes() == before
    assert sorted(item.name for item in course.iterdir()) == ["01-slow.ipynb", "pid"]
