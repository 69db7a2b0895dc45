"""The headless runner, on notebooks of a few cells that import nothing heavy."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from queue import Empty

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from metasp_lite import __main__
from metasp_lite.commands import tour
from metasp_lite.course import execution, pages

CHECK = "print('self-check passed: the sky is up')"
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
DRAW = f"from IPython.display import display\ndisplay({{'image/png': {PIXEL!r}, 'text/plain': 'pixel'}}, raw=True)"
SHOW_WIDGET = (
    "from IPython.display import display\n"
    "view = {'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': 'slider'}\n"
    "display(view, raw=True)"
)


def write(folder: Path, name: str, *sources: str, tags: tuple[str, ...] = ()) -> Path:
    """Write a notebook whose last cell carries the tags."""
    cells = [new_code_cell(source) for source in sources]
    cells[-1].metadata["tags"] = list(tags)
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A title\n\n$x^2$"), *cells]), path)
    return path


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An empty course, in place of the project's own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(tour, "NOTEBOOKS_DIR", folder)
    monkeypatch.setattr(tour, "RECORD", tmp_path / "tour.json")
    monkeypatch.delenv("METASP_PROFILE", raising=False)
    return folder


def run_tour(course: Path, *arguments: str) -> int:
    return __main__.main(["tour", *arguments, "--out", str(course.parent / "out")])


def test_a_failing_notebook_does_not_hide_the_next_one(course, capsys):
    write(course, "01-bad", CHECK, "raise ValueError('boom\\nand more')", "1")
    write(course, "02-good", CHECK + "\nimport os; print(os.environ.get('MPLBACKEND'), os.getcwd())", CHECK)

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
    assert "boom" in (out / "01-bad.html").read_text()
    assert str(course) in read(out / "02-good.ipynb").cells[1].outputs[0].text  # the kernel works in its folder


def test_kernel_is_this_interpreter_and_ignores_the_users_backend_and_kernels(course, monkeypatch, tmp_path):
    """A user's own "python3" kernel, put first on Jupyter's search path, must not be started."""
    impostor = tmp_path / "jupyter" / "kernels" / "python3"
    impostor.mkdir(parents=True)
    (impostor / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    lines = "import os, sys; print(sys.executable); print('agg' in os.environ.get('MPLBACKEND', ''))"

    done = execution.execute(write(course, "01-a", CHECK, lines))

    assert done.error is None
    assert done.notebook.cells[2].outputs[0].text.splitlines() == [sys.executable, "False"]


def test_a_notebook_that_checks_nothing_fails(course, capsys):
    write(course, "01-silent", "print('all is well')")
    assert run_tour(course) == 1
    assert "FAILED: no self-check ran" in capsys.readouterr().out


def test_a_dead_kernel_is_reported_at_once(course, capsys):
    """Well below the cell's own limit of 600 s; 30 s allows for a slow start of the kernel."""
    write(course, "01-dead", CHECK, DIE)
    start = time.monotonic()
    assert run_tour(course) == 1
    assert time.monotonic() - start < 30
    assert "FAILED in code cell 2 of 2: its kernel died" in capsys.readouterr().out
    assert read(course.parent / "out" / "01-dead.ipynb").cells[2].outputs[0].ename == "DeadKernelError"


def test_a_cell_that_never_ends_is_cut_off(course):
    done = execution.execute(write(course, "01-slow", CHECK, "import time; time.sleep(60)"), cell_seconds=1)
    assert done.error == "FAILED in code cell 2 of 2: it ran for more than 1 s"


def test_store_writes_clean_outputs_and_figures_back(course):
    path = write(course, "01-good", CHECK, SHOW_WIDGET, DRAW, tags=("readme-figure",))
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
    (run,) = json.loads((course.parent / "tour.json").read_text())["runs"]
    assert (run["notebook"], run["self_checks"]) == ("01-good", 1)


def test_without_store_or_after_a_failure_the_notebook_is_untouched(course):
    good, bad = write(course, "01-good", CHECK), write(course, "02-bad", CHECK, "1 / 0")
    before = good.read_bytes(), bad.read_bytes()
    assert run_tour(course, "01") == 0
    assert good.read_bytes() == before[0]
    assert run_tour(course, "--store", "02-bad") == 1
    assert bad.read_bytes() == before[1]
    assert not (course / "figures").exists()


def test_tidy_drops_a_widget_whose_output_is_not_compared():
    """A slider's view is noise without its kernel; what a cell prints beside it stays."""
    outputs = [
        new_output("display_data", data={execution.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "  0%|"}),
        new_output("stream", text="done"),
    ]
    cell = new_code_cell("", outputs=outputs, metadata={"tags": [execution.IGNORED_TAG]})
    assert [output.output_type for output in execution.tidy(new_notebook(cells=[cell])).cells[0].outputs] == ["stream"]


def test_self_checks_are_counted_by_line_in_text_and_results():
    outputs = [
        new_output("stream", text="self-check passed: a\nno self-check passed here\nself-check passed: b\n"),
        new_output("execute_result", data={"text/plain": "self-check passed: c"}),
    ]
    cells = [new_markdown_cell("self-check passed: not run"), new_code_cell("", outputs=outputs)]
    assert execution.count_self_checks(new_notebook(cells=cells)) == 3


@pytest.mark.parametrize("name", ["01", "01-a", "01-a.ipynb"])
def test_a_notebook_is_found_by_number_name_or_file_name(course, name):
    path = write(course, "01-a", CHECK)
    write(course, "02-b", CHECK)
    assert execution.find_notebooks(course, [name]) == execution.find_notebooks(course, [str(path)]) == [path]


def test_notebooks_come_in_reading_order_with_solutions_last(course):
    (course / "solutions").mkdir()
    (course / ".ipynb_checkpoints").mkdir()
    solution = write(course / "solutions", "01-a", CHECK)
    write(course / ".ipynb_checkpoints", "01-a", CHECK)
    second, first = write(course, "02-b", CHECK), write(course, "01-a", CHECK)
    assert execution.find_notebooks(course) == [first, second, solution]


def test_an_unknown_name_lists_those_that_exist(course, capsys):
    write(course, "01-a", CHECK)
    assert run_tour(course, "7") == 1
    assert capsys.readouterr().err == "metasp_lite: there is no notebook '7'; there are: 01-a\n"


def test_a_course_without_notebooks_is_an_error(course, capsys):
    assert run_tour(course) == 1
    assert "there is no notebook in" in capsys.readouterr().err


def test_page_asks_the_network_for_nothing_but_its_formulas(course):
    page = pages.to_html(new_notebook(cells=[new_markdown_cell("$x$")]), "t", "../mathjax")
    sources = [
        tag.split('src="')[1].split('"')[0] for tag in page.split("<") if tag.startswith("script") and "src=" in tag
    ]
    assert sources == ["../mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"]


def test_page_keeps_a_folded_answer_folded(course):
    """The formula stands between the tags, not behind an element that was closed too early."""
    answer = "<details><summary>why?</summary>\n\nbecause $x$\n\n</details>"
    page = pages.to_html(new_notebook(cells=[new_markdown_cell(answer)]), "t", "mathjax")
    body = page.partition("<summary>why?</summary>")[2]
    assert -1 < body.find("because") < body.find("</details>")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    """The disk gives out just before the new content would take the old one's place."""

    def fail(*_):
        raise OSError("no space left")

    path = tmp_path / "kept.txt"
    tour.write_atomically(path, "old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        tour.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_stops_the_kernel_and_leaves_nothing_behind(course):
    """The cell writes its kernel's process id, then sleeps; after SIGINT that process must be gone."""
    path = write(
        course, "01-slow", "import os; open('pid', 'w').write(str(os.getpid()))", "import time; time.sleep(60)"
    )
    code = (
        "import sys; from pathlib import Path; from metasp_lite import tour\n"
        "path = Path(sys.argv[1])\n"
        "with tour.stop_quietly(): tour.tour([path], path.parent, path.parent / 'out', store=True)"
    )
    before = path.read_bytes()
    command = [sys.executable, "-c", code, str(path)]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # a shell's background job, and all that it starts, would ignore SIGINT
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **streams, preexec_fn=heed) as process:
        pid = course / "pid"
        deadline = time.monotonic() + 60
        while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().startswith("stopped;")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert path.read_bytes() == before
    assert sorted(item.name for item in course.iterdir()) == ["01-slow.ipynb", "pid"]


class DeafSocket:
    """A socket that never wakes its reader: a message is seen only by a look that begins after it came."""

    def __init__(self, looks_before):
        self.looks_before, self.waited = looks_before, []

    async def poll(self, milliseconds):
        self.waited.append(milliseconds)
        return len(self.waited) > self.looks_before


def channel(socket, monkeypatch):
    """A channel on it, with a clock that its waiting moves."""
    monkeypatch.setattr(tour.time, "monotonic", lambda: sum(socket.waited) / 1000)
    found = execution.RecheckingChannel.__new__(execution.RecheckingChannel)
    found.socket = socket

    async def receive():
        return {"parent_header": {}}

    found._recv = receive
    return found


def test_a_message_whose_wake_up_was_missed_is_found_within_seconds(monkeypatch):
    socket = DeafSocket(looks_before=2)
    assert asyncio.run(channel(socket, monkeypatch).get_msg(600.0)) == {"parent_header": {}}
    assert socket.waited == [5000, 5000, 5000]
    endless = DeafSocket(looks_before=3)
    assert asyncio.run(channel(endless, monkeypatch).get_msg()) == {"parent_header": {}}


@pytest.mark.parametrize(("timeout", "waits"), [(12.0, [5000, 5000, 2000]), (5.0, [5000]), (0.0, [0])])
def test_a_channel_gives_up_at_its_time_limit(monkeypatch, timeout, waits):
    socket = DeafSocket(looks_before=99)
    with pytest.raises(Empty):
        asyncio.run(channel(socket, monkeypatch).get_msg(timeout))
    assert socket.waited == waits


def test_the_tours_kernels_have_such_channels():
    client = execution.ThisInterpreter().client()
    assert client.shell_channel_class is client.iopub_channel_class is execution.RecheckingChannel
