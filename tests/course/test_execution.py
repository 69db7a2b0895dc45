"""Notebooks run without a browser: which, in what kernel, how long, and what is left in them."""

import asyncio
import sys
from queue import Empty

import pytest
from helpers.small_notebooks import CHECK, write_notebook
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from metasp_lite.course import execution


@pytest.fixture
def course(tmp_path):
    """A folder for notebooks."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder


def test_kernel_is_this_interpreter_and_ignores_the_users_backend_and_kernels(course, monkeypatch, tmp_path):
    """A user's own "python3" kernel, put first on Jupyter's search path, must not be started."""
    impostor = tmp_path / "jupyter" / "kernels" / "python3"
    impostor.mkdir(parents=True)
    (impostor / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    lines = "import os, sys; print(sys.executable); print('agg' in os.environ.get('MPLBACKEND', ''))"

    done = execution.execute(write_notebook(course, "01-a", CHECK, lines))

    assert done.error is None
    assert done.notebook.cells[2].outputs[0].text.splitlines() == [sys.executable, "False"]


SHOWN = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    get_ipython().showtraceback()"
THREAD = "import threading\nthread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()"
WIDGET = "import ipywidgets\nout = ipywidgets.Output()\ndisplay(out)\nwith out:\n    1 / 0"


@pytest.mark.parametrize(
    ("source", "where"),
    [
        (SHOWN, "the output of code cell 2 of 3"),
        (THREAD, "the output of code cell 2 of 3"),
        (WIDGET, "a widget"),
    ],
)
def test_an_error_in_an_output_is_a_failure_though_the_cell_went_on(course, source, where):
    done = execution.execute(write_notebook(course, "01-a", CHECK, source, "1"))
    assert done.verdict == done.error == f"FAILED: {where} shows ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("source", "count"), [("1 / 0", "1 error"), (SHOWN, "1 error"), (THREAD, "1 error")])
def test_an_error_on_purpose_is_none_but_the_verdict_says_so(course, source, count):
    done = execution.execute(write_notebook(course, "01-a", CHECK, source, tags=("raises-exception",)))
    assert done.error is None
    assert done.verdict == f"1 self-check passed, {count} on purpose (raises-exception)"


def test_a_warning_and_a_traceback_that_is_quoted_are_no_failure(course):
    quoted = "import warnings; warnings.warn('old'); print('Traceback (most recent call last):')"
    assert execution.execute(write_notebook(course, "01-a", CHECK, quoted)).verdict == "1 self-check passed"


def test_a_cell_that_never_ends_is_cut_off(course):
    done = execution.execute(write_notebook(course, "01-slow", CHECK, "import time; time.sleep(60)"), cell_seconds=1)
    assert done.error == "FAILED in code cell 2 of 2: it ran for more than 1 s"


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
    path = write_notebook(course, "01-a", CHECK)
    write_notebook(course, "02-b", CHECK)
    assert execution.find_notebooks(course, [name]) == execution.find_notebooks(course, [str(path)]) == [path]


def test_notebooks_come_in_reading_order_with_solutions_last(course):
    (course / "solutions").mkdir()
    (course / ".ipynb_checkpoints").mkdir()
    solution = write_notebook(course / "solutions", "01-a", CHECK)
    write_notebook(course / ".ipynb_checkpoints", "01-a", CHECK)
    second, first = write_notebook(course, "02-b", CHECK), write_notebook(course, "01-a", CHECK)
    assert execution.find_notebooks(course) == [first, second, solution]


class DeafSocket:
    """A socket that never wakes its reader: a message is seen only by a look that begins after it came."""

    def __init__(self, looks_before):
        self.looks_before, self.waited = looks_before, []

    async def poll(self, milliseconds):
        self.waited.append(milliseconds)
        return len(self.waited) > self.looks_before


def channel(socket, monkeypatch):
    """A channel on it, with a clock that its waiting moves."""
    monkeypatch.setattr(execution.time, "monotonic", lambda: sum(socket.waited) / 1000)
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
