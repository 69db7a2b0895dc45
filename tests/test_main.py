"""The command line as a whole: quick where nothing is computed, and true about what there is."""

import json
import subprocess
import sys

import pytest

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
