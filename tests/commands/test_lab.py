"""The learner's copy of the notebooks: made once, never written over; and what becomes of the process."""

import json
import os
import sys

import pytest

from metasp_lite import __main__
from metasp_lite.commands import lab


class Became(Exception):
    """Stands for JupyterLab, which takes the process over."""


@pytest.fixture
def open_lab(tmp_path, monkeypatch, capsys):
    """A course of two notebooks; call it to open JupyterLab: returns its words, its environment, what was printed."""
    for name in ("00-start-here", "01-a"):
        write(tmp_path / "notebooks" / f"{name}.ipynb", f"{name} of the course")
    monkeypatch.setattr(lab, "NOTEBOOKS_DIR", tmp_path / "notebooks")
    monkeypatch.setattr(lab, "_COPIES", tmp_path / "mine")
    monkeypatch.setattr(lab, "_CONFIG", tmp_path / "config")
    calls = []

    def become(program, words, environment):
        calls.append((words, environment))
        raise Became

    monkeypatch.setattr(os, "execve", become)

    def call(*words):
        with pytest.raises(Became):
            __main__.main(["lab", *words])
        return *calls[-1], capsys.readouterr().out

    return call


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def mine(tmp_path):
    return {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "mine").glob("*.ipynb")}


def test_the_first_time_all_are_copied_and_the_start_page_is_opened(open_lab, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/their/own")
    words, environment, out = open_lab("--", "--no-browser")
    assert words[:3] == [sys.executable, "-m", "jupyterlab"]
    assert words[-1] == "--no-browser"
    assert {f"--ServerApp.root_dir={tmp_path / 'mine'}", "--LabApp.default_url=/lab/tree/00-start-here.ipynb"} < {
        *words
    }
    assert mine(tmp_path) == {f"{name}.ipynb": f"{name} of the course" for name in ("00-start-here", "01-a")}
    assert "2 new, 0 as you left them" in out
    assert "MPLBACKEND" not in environment
    assert environment["JUPYTER_CONFIG_PATH"] == os.pathsep.join([str(tmp_path / "config"), "/their/own"])
    defaults = json.loads((tmp_path / "config/labconfig/default_setting_overrides.json").read_text())
    assert defaults["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


def test_work_is_kept_and_the_way_to_start_afresh_is_said(open_lab, tmp_path):
    open_lab()
    write(tmp_path / "mine" / "01-a.ipynb", "my work")
    *_, out = open_lab()
    assert mine(tmp_path)["01-a.ipynb"] == "my work"
    assert "0 new, 2 as you left them" in out
    assert "delete your copy" in out
    assert "another version" not in out  # the course's own has not changed


def test_a_new_version_is_pointed_out_and_taken_only_where_there_is_no_copy(open_lab, tmp_path):
    open_lab()
    write(tmp_path / "mine" / "01-a.ipynb", "my work")
    write(tmp_path / "notebooks" / "01-a.ipynb", "second edition")
    for _ in range(2):
        *_, out = open_lab()
        assert "another version of 01-a.ipynb than yours came from; yours is kept" in out
        assert "00-start-here.ipynb" not in out
        assert mine(tmp_path)["01-a.ipynb"] == "my work"
    (tmp_path / "mine" / "01-a.ipynb").unlink()
    *_, out = open_lab()
    assert "another version" not in out
    assert mine(tmp_path)["01-a.ipynb"] == "second edition"
    *_, out = open_lab()
    assert "another version" not in out


@pytest.mark.parametrize("damage", ["", "[]", "no JSON"])
def test_without_knowing_where_a_copy_came_from_one_that_differs_is_pointed_out_and_kept(open_lab, tmp_path, damage):
    open_lab()
    write(tmp_path / "mine" / "01-a.ipynb", "my work")
    write(tmp_path / "mine" / ".copied-from.json", damage)
    *_, out = open_lab()
    assert out.count("another version") == 1
    assert mine(tmp_path)["01-a.ipynb"] == "my work"


def test_a_file_in_the_place_of_the_copies_and_a_package_without_notebooks_are_refused(open_lab, tmp_path, capsys):
    write(tmp_path / "mine", "a file")
    assert __main__.main(["lab"]) == 1
    assert "is a file; move it away" in capsys.readouterr().err
    (tmp_path / "mine").unlink()
    for path in (tmp_path / "notebooks").iterdir():
        path.unlink()
    assert __main__.main(["lab"]) == 1
    assert "there is no notebook in" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
