"""The command that runs the notebooks, on small ones that import nothing heavy."""

import json
import os
import re
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
        "01-bad.ipynb", "01-bad.html", "02-good.ipynb", "02-good.html", "index.html", "mathjax",
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


def test_the_list_of_all_has_each_notebook_with_its_question_and_how_its_run_ended(course):
    """Three notebooks, of which the second is run, then the first; the page is read by what stands in its table."""

    def rows() -> list[list[str]]:
        page = (course.parent / "out" / "index.html").read_text(encoding="utf-8")
        body = page.partition("<tbody>")[2].partition("</tbody>")[0]
        return [re.findall(r"<td>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]

    for number in (1, 2, 3):
        write_notebook(course, f"0{number}-a", CHECK, "1 / 0" if number == 1 else CHECK)
    second = read(course / "02-a.ipynb")
    second.cells[0].source = "# 02 · A *title*\n\n| | |\n|---|---|\n| **Question** | What is $x_1$, or ½? |"
    nbformat.write(second, course / "02-a.ipynb")

    assert run_tour(course, "02") == 0
    link = '<a href="02-a.html">02 · A <em>title</em></a>'
    first_time = [[cell for cell in row if not cell.endswith(" s")] for row in rows()]
    assert first_time == [
        ["A title", "", "", "not run this time"],
        [link, "What is $x_1$, or ½?", "2 self-checks passed"],
        ["A title", "", "", "not run this time"],
    ]
    assert run_tour(course, "01") == 1
    first, second, third = rows()
    assert first[0] == '<a href="01-a.html">A title</a>'
    assert first[3] == "FAILED in code cell 2 of 2: ZeroDivisionError: division by zero"
    assert second == [link, "What is $x_1$, or ½?", "", "not run this time"]  # its page is still there
    assert third[3] == "not run this time"


def test_without_store_or_after_a_failure_the_notebook_is_untouched(course):
    good, bad = write_notebook(course, "01-good", CHECK), write_notebook(course, "02-bad", CHECK, "1 / 0")
    before = good.read_bytes(), bad.read_bytes()
    assert run_tour(course, "01") == 0
    assert good.read_bytes() == before[0]
    assert run_tour(course, "--store", "02-bad") == 1
    assert bad.read_bytes() == before[1]
    assert not (course / "figures").exists()


BROKEN = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "no cells": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    "a cell without source": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code"}]}',
    "of the future": b'{"nbformat": 9, "nbformat_minor": 0, "cells": [], "metadata": {}}',
    "not UTF-8": b"\xff\xfe{\x00",
    "a picture": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
def test_broken_notebooks_are_a_line_each_and_the_others_run(course, capsys):
    for number, content in enumerate(BROKEN.values()):
        (course / f"{number:02}-broken.ipynb").write_bytes(content)
    (course / "97-folder.ipynb").mkdir()
    (course / "98-link.ipynb").symlink_to("nowhere")
    good = write_notebook(course, "99-good", CHECK)
    plain = read(good)
    plain.metadata.clear()  # no kernelspec
    nbformat.write(plain, good)
    before = {path: path.read_bytes() for path in course.glob("*-broken.ipynb")}
    assert run_tour(course, "--store") == 1
    *lines, last, end = capsys.readouterr().out.splitlines()
    assert len(lines) == len(BROKEN) + 2
    for line in lines:
        name = line.partition(" ")[0]
        assert f"FAILED before its first cell: {name}.ipynb cannot be read as a notebook (" in line
        assert f"{name}.ipynb cannot be read" in (course.parent / "out" / f"{name}.html").read_text(encoding="utf-8")
    assert last.startswith("99-good")
    assert last.endswith("1 self-check passed")
    assert end.startswith(f"1 of {len(BROKEN) + 3} notebooks passed")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("out", ["notebooks", "notebooks/out", ".", "notebooks/../notebooks/a", "link", "a.txt"])
def test_copies_never_go_among_or_over_the_notebooks(course, monkeypatch, capsys, out):
    path = write_notebook(course, "01-a", CHECK)
    monkeypatch.chdir(course.parent)
    (course.parent / "link").symlink_to(course)
    (course.parent / "a.txt").write_text("a file")
    before, content = sorted(course.parent.rglob("*")), path.read_bytes()
    assert __main__.main(["tour", "--out", out]) == 1
    assert f"metasp_lite: --out {out} " in capsys.readouterr().err
    assert sorted(course.parent.rglob("*")) == before
    assert path.read_bytes() == content


def no_run(*_, **__):
    pytest.fail("a notebook ran")


@pytest.mark.parametrize(
    "target", ["out/01-a.ipynb", "out/01-a.html", "out/index.html", "out/mathjax", "out", "tour.json"]
)
def test_a_place_that_cannot_be_written_is_refused_before_a_notebook_runs(course, monkeypatch, capsys, target):
    write_notebook(course, "01-a", CHECK)
    (course.parent / "out").mkdir()
    if target in ("out", "out/mathjax"):
        (course.parent / "out").rmdir()
        (course.parent / "out").symlink_to("nowhere/at/all")
        (course.parent / "nowhere").write_text("in the way")
    else:
        (course.parent / target).mkdir()
    monkeypatch.setattr("metasp_lite.course.execution.execute", no_run)
    assert run_tour(course, "--store") == 1
    assert "metasp_lite: cannot write" in capsys.readouterr().err


def test_nonsense_of_the_surroundings_is_refused_before_a_notebook_runs(course, monkeypatch, capsys):
    write_notebook(course, "01-a", CHECK)
    monkeypatch.setattr("metasp_lite.course.execution.execute", no_run)
    monkeypatch.setenv("METASP_DATA", str(course.parent / "nowhere"))
    assert run_tour(course) == 1
    assert "create it or unset METASP_DATA" in capsys.readouterr().err
    monkeypatch.setenv("METASP_PROFILE", "huge")
    assert run_tour(course) == 1
    assert "METASP_PROFILE='huge' is not a profile" in capsys.readouterr().err
    assert not (course.parent / "out").exists()


def test_a_relative_data_folder_is_the_same_in_the_kernels(course, monkeypatch):
    write_notebook(course, "01-a", CHECK, "import os; print(os.environ['METASP_DATA'])")
    monkeypatch.chdir(course.parent)
    (course.parent / "sets").mkdir()
    monkeypatch.setenv("METASP_DATA", "sets")
    assert run_tour(course) == 0
    assert read(course.parent / "out" / "01-a.ipynb").cells[2].outputs[0].text.strip() == str(course.parent / "sets")


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
        course, "01-slow", "import os; open('pid', 'w').write(str(os.getpid()))", "import time; time.sleep(600)"
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
        deadline = time.monotonic() + 300  # however busy the machine is; alone it takes six seconds
        while not (pid.exists() and pid.read_text(encoding="utf-8")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().startswith("stopped;")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="utf-8")), 0)
    assert path.read_bytes() == before
    assert sorted(item.name for item in course.iterdir()) == ["01-slow.ipynb", "pid"]
