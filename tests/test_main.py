"""The command line as a whole: quick where nothing is computed, and true about what there is."""

import json
import os
import signal
import subprocess
import sys

import pytest
from helpers.image_files import write_lists

from metasp_lite import __main__ as program
from metasp_lite import images
from metasp_lite.course.two_stages import SETUPS
from metasp_lite.studies import multi_stage

HEAVY = ("torch", "numpy", "pandas", "matplotlib", "nbformat", "nbconvert", "joblib", "scipy", "PIL")
# What a child process does with its words, the modules that it has then, and the CPU seconds of all of it.
CHILD = """
import json, sys, time
from metasp_lite.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
print(json.dumps([status, sorted(sys.modules), time.process_time()]))
"""


def in_a_child(*words):
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True)
    return *json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr


QUICK = {
    "--help": 0,
    "": 2,
    "--nonsense": 2,
    "nonsense": 2,
    **{f"{name} --help": 0 for name in program.COMMANDS},
    **{f"{name} --nonsense": 2 for name in program.COMMANDS},
    "data download --help": 0,
    "data download mnist --nonsense": 2,
    "data download nonsense": 2,
    "stages tasks --data mnist --nonsense": 2,
    "stages --data nonsense": 2,
    "stages nonsense": 1,
    "bench nonsense": 1,
    "bench toy --seeds many": 2,
    "tour 01 --store --nonsense": 2,
    "train --stream x --method er --out x --set epochs": 1,
    "train --stream x --method er --out x --profile nonsense": 2,
    "grid grid.toml --out x --workers 0": 1,
}


@pytest.mark.parametrize("line", QUICK)
def test_help_and_wrong_words_cost_next_to_nothing(line):
    """At most 0.3 s of CPU time; of a few runs the best, since other processes may be in the way."""
    seconds = []
    while len(seconds) < 5 and min(seconds, default=1.0) > 0.3:
        status, modules, taken, *_ = in_a_child(*line.split())
        assert status == QUICK[line]
        assert not set(HEAVY) & set(modules)
        seconds.append(taken)
    assert min(seconds) <= 0.3


def test_the_names_that_help_and_refusals_list_are_those_that_there_are():
    sets, studies, data = sorted(images.KNOWN), list(multi_stage.STUDIES), list(SETUPS)
    assert f"{{{','.join(sets)}}}" in in_a_child("data", "download", "--help")[3]
    assert all(repr(name) in in_a_child("data", "download", "x")[4] for name in sets)
    help_of_stages = "".join(in_a_child("stages", "--help")[3].split())
    assert f"{{{','.join(studies)}}}" in help_of_stages
    assert f"{{{','.join(data)}}}" in help_of_stages
    refusal = in_a_child("stages", "more")[4]
    assert refusal == f"metasp_lite: there is no study 'more'; choose from {', '.join(studies)}\n"
    assert all(f"  {name} " in in_a_child("--help")[3] for name in program.COMMANDS)


def test_an_error_is_told_even_before_torch_is_there():
    """A defect is no sentence, and asking whether it is one loads nothing."""
    code = (
        "import sys; from metasp_lite import __main__ as program\n"
        "assert program._sentence(KeyError('x')) is None\n"
        "assert program._sentence(ValueError('x')) == 'x'\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


POLITE = [signal.SIGTERM, signal.SIGHUP] if hasattr(signal, "SIGHUP") else [signal.SIGTERM]


@pytest.mark.parametrize("number", POLITE)
def test_a_polite_end_unwinds_the_command_and_nohup_has_none(number, monkeypatch, capsys):
    unwound = []

    def command(_):
        try:
            signal.raise_signal(number)
        finally:
            unwound.append(number)
        return 0

    monkeypatch.setattr("metasp_lite.commands.data.main", command)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert program.main(["data"]) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
        assert capsys.readouterr().err == "\nmetasp_lite: interrupted\n"
        signal.signal(number, signal.SIG_IGN)
        assert program.main(["data"]) == 0
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert unwound == [number] * 2


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def in_a_plain_locale(arguments, **environment):
    """Run Python where its own encoding is not UTF-8, and have it tell each place that relies on that."""
    command = [sys.executable, "-X", "warn_default_encoding", *map(str, arguments)]
    surroundings = {**os.environ, **PLAIN, **environment}
    return subprocess.run(command, env=surroundings, capture_output=True, check=False)


def test_what_a_console_cannot_show_is_spelt_out(tmp_path):
    """A class with a Chinese name, listed and refused; one process has one console after another."""
    (tmp_path / "toy" / "train" / "\u732b").mkdir(parents=True)
    (tmp_path / "toy" / "test" / "\u732b").mkdir(parents=True)
    code = """
import io, sys
from metasp_lite.__main__ import main
for encoding in sys.argv[1:]:
    at_first, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), encoding)
    status = main(["data"])
    sys.stdout.flush()
    shown, sys.stdout = sys.stdout.buffer.getvalue().decode(encoding), at_first
    print(encoding, status, "toy" in shown and "holds no image" in shown)
"""
    encodings = ["ascii", "cp1252", "iso-8859-1", "utf-8"]
    done = in_a_plain_locale(["-c", code, *encodings], METASP_DATA=str(tmp_path))
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode("ascii").splitlines() == [f"{encoding} 0 True" for encoding in encodings]


def test_a_runs_own_result_is_its_own_in_every_locale(tmp_path):
    """Trained, told again, and in a grid; the classes have names that are not ASCII, in lists with a mark before."""
    folder = tmp_path / "images"
    write_lists(folder, {"train": list("aabbccdd"), "test": list("abcd")}, size=(8, 8))
    for name in ("train", "test"):
        text = (folder / f"{name}.csv").read_text("utf-8").replace(",a", ",\u00e4").replace(",b", ",\u732b")
        (folder / f"{name}.csv").write_text(text, "utf-8-sig")
    grid = f'# \u03bb\nstreams = ["{folder}"]\nmethods = ["er"]\nseeds = [1]\nmemory = [8]\n'
    grid += "[set]\nepochs = 1\nnetwork = 'mlp'\n"
    (tmp_path / "grid.toml").write_text(grid, "utf-8")
    code = """
import sys
from metasp_lite.__main__ import main
images, out, grid = sys.argv[1:]
line = ["train", "--stream", images, "--method", "er", "--out", out, "--memory", "8"]
line += ["--set", "epochs=1", "--set", "network=mlp"]
print([main(line), main(line), main(["grid", grid, "--out", out + "-grid", "--workers", "1"]), main(["data"])])
try:
    main(["grid", "--help"])
except SystemExit as stop:
    print(stop.code)
"""
    arguments = ["-c", code, folder, tmp_path / "run", tmp_path / "grid.toml"]
    done = in_a_plain_locale(arguments, METASP_DATA=str(tmp_path), METASP_CACHE=str(tmp_path / "cache"))
    told = done.stdout.decode("ascii").splitlines()
    assert "[0, 0, 0, 0]" in told, done.stderr
    assert told[-1] == "0"
    ours = [line for line in done.stderr.splitlines() if b"EncodingWarning" in line and b"metasp_lite" in line]
    assert not ours
