"""What the command line refuses: a status that is not 0, one line that names the value, and nothing written."""

import re
import subprocess
import sys

import pytest
from helpers.tiny_stream import make_folder

from metasp_lite import __main__ as program
from metasp_lite import settings
from metasp_lite.continual import fields
from metasp_lite.continual.learner import Recipe
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.streams import StreamSettings

TEXTS = {  # of settings, by type; none of them can be meant
    int: ["", "x", "1.5", "nan", "inf", "-1", "true", "1e3", "0x10", "[1]", "1_0", "\u0661", "\u00b2"],
    float: ["", "x", "nan", "inf", "-inf", "-1", "true", "1/2", "0,5", "1e999", "0.0_1", "\uff11"],
    bool: ["", "x", "1", "0", "yes", "none", "nan"],
    str: ["", "nonsense", " ", "none-such"],
}
HUGE = "99999999999999999999"


def settings_of(method):
    kinds = (StreamSettings, Recipe, METHODS[method].Settings)
    return {name: fields.kind_of(wanted)[0] for kind in kinds for name, wanted in fields.types_of(kind).items()}


def rows_of_settings():
    seen, rows = set(), []
    for method in METHODS:
        for name, kind in settings_of(method).items():
            if name not in seen:
                seen.add(name)
                rows += [(method, name, text) for text in TEXTS[kind]]
    return rows


TRAIN = "train --stream {folder} --method er --out {out} --set epochs=1 --set network=mlp"
GRID = 'streams = ["{folder}"]\nmethods = ["er"]\nseeds = [1]\n[set]\nepochs = 1\nnetwork = "mlp"\n'

LINES = {  # a command line, and what its refusal says
    "": "required: command",
    "nonsense": "nonsense",
    "--nonsense": "required: command|nonsense",
    "train": "required: --stream, --method, --out",
    "train --stream split-mnist --method er": "--out",
    "train --method er --out {out}": "--stream",
    "train --stream {folder} --out {out}": "--method",
    "train --stream {folder} --method ER --out {out}": "'ER'; give one of: .*er",
    "train --stream {folder} --method nonsense --out {out}": "'nonsense'; give one of: .*metasp",
    "train --stream {folder} --method= --out {out}": "''; give one of",
    "train --stream= --method er --out {out}": "stream's name is empty",
    "train --stream split-mnst --method er --out {out}": "'split-mnst'; give one of: .*split-mnist",
    "train --stream /none/such --method er --out {out}": "'/none/such'",
    "train --stream {file} --method er --out {out}": "{file}",
    "train --stream {empty} --method er --out {out}": "{empty}",
    "train --stream {folder} --method er --out {file}": "{file}",
    "train --stream {folder} --method er --out {file}/below": "{file}",
    "train --stream {folder} --method er --out=": "out",
    "train --stream split-mnist --method er --out {out}": "mnist",
    "train --stream ~nobody-of-this-name --method er --out {out}": "~nobody-of-this-name",
    "train --stream ~nobody-of-this-name/x --method er --out {out}": "~nobody-of-this-name",
    TRAIN + " --memory x": "'x'",
    TRAIN + " --memory 0": "memory=0",
    TRAIN + " --memory=-1": "memory=-1",
    TRAIN + " --memory 1.5": "'1.5'",
    TRAIN + f" --memory {HUGE}": HUGE,
    TRAIN + " --memory 5 --set memory=6": "twice",
    TRAIN + " --seed x": "'x'",
    TRAIN + " --seed 1_0": "'1_0' is no whole number",
    TRAIN + " --seed \u0661": "is no whole number",
    TRAIN + " --memory 1_2": "'1_2' is no whole number",
    TRAIN + " --threads 1_0": "'1_0' is no whole number",
    TRAIN + " --checkpoint-seconds 6_0": "'6_0' is no number",
    TRAIN.replace("er ", "mir ")
    + " --memory 12 --set memory_batch=4 --set candidates=13": "candidates=13 is more than memory=12",
    TRAIN.replace("er ", "er-late ") + " --memory 12 --set rehearse_trusted=true": "rehearse_trusted=True: the stream",
    "grid {grid} --out {out} --workers 1_0": "'1_0' is no whole number",
    "grid {grid} --out {out} --threads 1_0": "'1_0' is no whole number",
    "bench toy --seeds 1_0": "'1_0' is no whole number",
    TRAIN + " --seed=-1": "seed=-1",
    TRAIN + " --seed 1.5": "'1.5'",
    TRAIN + f" --seed {HUGE}": HUGE,
    TRAIN + " --threads 0": "threads=0",
    TRAIN + " --threads=-3": "threads=-3",
    TRAIN + " --threads x": "'x'",
    TRAIN + f" --threads {HUGE}": HUGE,
    TRAIN + " --profile nonsense": "'nonsense'",
    TRAIN + " --profile=": "''",
    TRAIN + " --checkpoint-seconds x": "'x'",
    TRAIN + " --checkpoint-seconds nan": "nan",
    TRAIN + " --checkpoint-seconds=-1": "-1",
    TRAIN + " --set lr": "lr",
    TRAIN + " --set =1": "''",
    TRAIN + " --set lr=1 --set lr=2": "twice",
    TRAIN + " --set nonsense=1": "'nonsense'; there are: .*lr",
    TRAIN + " --set late_epochs=1": "'late_epochs'",
    TRAIN + " --set classes_per_task=4": "tasks of 4; give one of",
    TRAIN + " --set classes_per_task=0": "tasks of 0|classes_per_task=0",
    TRAIN + " --set per_class=0": "0",
    TRAIN + " --set per_class=1000": "1000",
    TRAIN + " --set size=0": "size=0",
    TRAIN + " --set source=download": "source='download'",
    TRAIN + " --set batch=0": "batch=0",
    TRAIN + " --set lr=0": "lr=0",
    TRAIN + " --set nesterov=true": "nesterov",
    TRAIN + f" --set padding={HUGE}": "padding",
    TRAIN + f" --set class_seed={HUGE}": HUGE,
    TRAIN + f" --set batch={HUGE}": "batch",
    TRAIN + f" --set per_class={HUGE}": HUGE,
    TRAIN + f" --set size={HUGE}": "size",
    TRAIN + f" --set memory={HUGE}": "memory|" + HUGE,
    TRAIN + f" --set memory_batch={HUGE}": "memory_batch",
    TRAIN + " --set lr=1e300": "lr=1e\\+300",
    TRAIN + " --set weight_decay=1e300": "weight_decay=1e\\+300",
    TRAIN + " --threads 5000": "threads=5000",
    TRAIN + " --set padding=8": "padding=8",
    TRAIN + " --set padding=1000000": "padding=1000000",
    TRAIN + " --set size=65536": "65536×65536 pixels needs at least .* GB",
    TRAIN + " --seed 3 --seed 4": "--seed is given twice",
    TRAIN + " --memory 4 --memory 4": "--memory is given twice",
    TRAIN + " --out {out}": "--out is given twice",
    TRAIN + " --stream {folder}": "--stream is given twice",
    TRAIN + " --memory 5 --set memory_batch=6": "memory_batch=6 is more than memory=5",
    TRAIN + " --memory 25": "memory=25 is more than the 24 training images",
    TRAIN + " --set data=mnist": "data is asked for twice",
    TRAIN + " --set source=bundled": "source='bundled' has no folder",
    TRAIN.replace("er ", "er-late ") + " --set late_epochs=2": "late_epochs=2 is more than the epochs=1",
    TRAIN.replace("{out}", "~nobody-of-this-name/x"): "no home folder for ~nobody-of-this-name/x",
    TRAIN.replace("{out}", "{loop}"): "{loop}",
    TRAIN.replace("{out}", "a" * 300): "File name too long",
    TRAIN.replace("{folder}", "a" * 5000): "there is no stream 'aaa",
    TRAIN.replace("{folder}", "{loop}"): "there is no stream '{loop}'",
    TRAIN.replace("{folder}", "{folder}/train"): "no folder {folder}/train/train",
    "grid {grid} --out {out} --threads 1 --threads 2": "--threads is given twice",
    "grid {loop} --out {out}": "{loop} cannot be read",
    "grid {grid} --out {folder}": "lie in each other",
    "grid ~nobody-of-this-name/x --out {out}": "no home folder",
    "tour 01 --out {loop}": "{loop}",
    "tour {loop}": "there is no notebook '{loop}'",
    "stages tasks --data mnist --data mnist": "--data is given twice",
    "bench toy --seeds 2 --seeds 3": "--seeds is given twice",
    TRAIN + " nonsense": "nonsense",
    "train --stream {folder} --method fine-tune --out {out} --memory 5": "fine-tune has no memory",
    "train --stream {folder} --method gem --out {out} --memory 1": "memory=1",
    "grid": "FILE.toml, --out",
    "grid {grid}": "--out",
    "grid /none/such.toml --out {out}": "/none/such.toml",
    "grid {folder} --out {out}": "{folder}",
    "grid {file} --out {out}": "{file}",
    "grid {empty_file} --out {out}": "{empty_file}",
    "grid {grid} --out=": "--out",
    "grid {grid} --out {out} --workers 0": "--workers",
    "grid {grid} --out {out} --workers=-1": "--workers",
    "grid {grid} --out {out} --workers x": "'x'",
    "grid {grid} --out {out} --threads 0": "--threads",
    "grid {grid} --out {out} --threads x": "'x'",
    "grid {grid} --out {out} --checkpoint-seconds nan": "nan",
    "grid {grid} --out {out} --checkpoint-seconds=-1": "-1",
    "grid {grid} --out {out} --checkpoint-seconds x": "'x'",
    "grid {grid} --out {out} --workers 1 --dask tcp://x": "not allowed with",
    "grid {grid} --out {out} --dask=": "dask",
    "grid {grid} --out {out} --dask nonsense": "nonsense",
    "data nonsense": "nonsense",
    "data download": "name",
    "data download nonsense": "'nonsense'",
    "data download MNIST": "'MNIST'",
    "data download mini-imagenet": "mini-imagenet cannot be downloaded",
    "bench nonsense": "'nonsense'; choose from toy, step, train",
    "bench toy nonsense": "'nonsense'",
    "bench toy --seeds 0": "--seeds 0",
    "bench toy --seeds=-1": "--seeds -1",
    "bench toy --seeds x": "'x'",
    "bench toy --seeds 1.5": "'1.5'",
    f"bench step --seeds=-{HUGE}": HUGE,
    "stages nonsense": "'nonsense'; choose from",
    "stages tasks nonsense": "'nonsense'",
    "stages --data nonsense": "'nonsense'",
    "stages --data=": "''",
    "tour 99": "'99'; there are: .*01",
    "tour nonsense": "'nonsense'; there are",
    "tour 01 --out .": "current folder",
    "tour 01 --out {file}": "is a file",
    "tour 01 --out {notebooks}": "among or over",
    "tour 01 --out /": "among or over",
    "tour /none/such.ipynb": "/none/such.ipynb",
    "tour --store 99": "'99'",
    "gpu-check nonsense": "nonsense",
    "gpu-check --device nonsense --out {out}/gpu.json": "'nonsense' is not here; give one of: cpu",
    "gpu-check --device meta --out {out}/gpu.json": "'meta' is not here",
    "gpu-check --device= --out {out}/gpu.json": "'' is not here",
    "gpu-check --device cpu --out={folder}": "it is a folder",
    "gpu-check --device cpu --out {file}/below": "{file}",
    "gpu-check --device cpu --out=": "the name is empty",
    "uses nonsense": "'nonsense'; choose from halves, removal, labels",
    "uses --seeds 1": "--seeds",
    "variants nonsense": "nonsense",
    "variants --seeds 1": "--seeds",
}

GRIDS = {  # the text of a grid, and what its refusal says
    "": "streams must be a list",
    "x": "x|Expected",
    "\0": "Cannot|Invalid|Illegal|Unescaped",
    GRID.replace('["er"]', '["nonsense"]'): "'nonsense'; give one of",
    GRID.replace('["er"]', "[]"): "methods must be a list",
    GRID.replace('["er"]', '"er"'): "methods must be a list",
    GRID.replace('["er"]', "[1]"): "methods must be a list",
    GRID.replace("[1]", "[]"): "seeds must be a list",
    GRID.replace("[1]", "[1, 2, 1]"): "seeds lists 1 twice",
    GRID.replace('["er"]', '["er", "er"]'): "methods lists 'er' twice",
    GRID.replace('["{folder}"]', '["{folder}", "{folder}"]'): "streams lists '{folder}' twice",
    "memory = [5, 5]\n" + GRID: "memory lists 5 twice",
    "memory = [5, 25]\n" + GRID: "memory=25 is more than the 24 training images",
    "memory = [5]\n" + GRID + "memory_batch = 6\n": "memory_batch=6 is more than memory=5",
    GRID + 'data = "mnist"\n': "data is asked for twice",
    GRID + "lr = 1e999\n": "lr=inf",
    GRID + 'batch = "1_0"\n': "batch=1_0 must be a whole number",
    GRID + 'lr = "0.0_1"\n': "lr=0.0_1 must be a finite number",
    GRID.replace('["er"]', '["mir"]')
    + "memory = 12\nmemory_batch = 4\ncandidates = 13\n": "candidates=13 is more than memory=12",
    GRID.replace('["er"]', '["er", "er-late"]')
    + "memory = 12\n[set.er-late]\nrehearse_trusted = true\n": "er-late.*rehearse_trusted=True: the",
    GRID + "lr = " + "1" * 5000 + "\n": "is no TOML: Exceeds the limit",
    GRID + "[set.er.lr]\nx = 1\n": "lr={'x': 1}",
    '"" = 1\n' + GRID: "'' means nothing here",
    GRID.replace('["{folder}"]', '["\\u0000"]'): "there is no stream",
    GRID.replace("[1]", "1"): "seeds must be a list",
    GRID.replace("[1]", "[1.5]"): "seeds must be a list",
    GRID.replace("[1]", "[true]"): "seeds must be a list",
    GRID.replace("[1]", '["1"]'): "seeds must be a list",
    GRID.replace("[1]", "[-1]"): "seed=-1",
    GRID.replace("[1]", "[nan]"): "seeds must be a list",
    GRID.replace("[1]", f"[{HUGE}]"): HUGE,
    GRID.replace('["{folder}"]', '["nonsense"]'): "'nonsense'; give one of",
    GRID.replace('["{folder}"]', '[""]'): "name is empty",
    GRID.replace('["{folder}"]', "[]"): "streams must be a list",
    GRID.replace('["{folder}"]', "[3]"): "streams must be a list",
    "nonsense = 1\n" + GRID: "'nonsense' means nothing here",
    'profile = "nonsense"\n' + GRID: "profile='nonsense'",
    "profile = 3\n" + GRID: "profile=3",
    "memory = 5\n" + GRID: "memory must be a list",
    "memory = []\n" + GRID: "memory must be a list",
    "memory = [0]\n" + GRID: "memory=0",
    "memory = [-1]\n" + GRID: "memory=-1",
    "memory = [1.5]\n" + GRID: "memory must be a list",
    "memory = [5]\n" + GRID + "memory = 6\n": "memory is asked for twice",
    GRID + "nonsense = 1\n": "'nonsense'",
    GRID + 'lr = "x"\n': "lr=x",
    GRID + "lr = true\n": "lr=True",
    GRID + "lr = nan\n": "lr=nan",
    GRID + "lr = [1]\n": "lr=\\[1\\]",
    GRID + "batch = 1.5\n": "batch=1.5",
    GRID + "batch = 0\n": "batch=0",
    GRID + "flip = 1\n": "flip=1",
    GRID + "padding = true\n": "padding=True",
    GRID + "size = 1979-05-27\n": "size=1979-05-27",
    GRID + "[set.nonsense]\nlr = 1\n": "\\[set.nonsense\\]",
    GRID + "[set.er]\nnonsense = 1\n": "'nonsense'",
    GRID + "[set.er]\nlr = -1\n": "lr=-1",
    GRID + "epochs = 2\n": "overwrite|Cannot",
    GRID.replace("[set]", "[[set]]"): "set must be a table",
    GRID.partition("[set]")[0] + "set = 3\n": "set must be a table",
    GRID.partition("[set]")[0] + "set = []\n": "set must be a table",
}

SURROUNDINGS = {  # variables, a command line, and what its refusal says
    ("METASP_PROFILE", "nonsense", "data"): "METASP_PROFILE='nonsense'",
    ("METASP_PROFILE", "", "data"): "METASP_PROFILE=''",
    ("METASP_PROFILE", "LITE", "train --list"): "METASP_PROFILE='LITE'",
    ("METASP_PROFILE", "lite ", "bench toy"): "METASP_PROFILE='lite '",
    ("METASP_DATA", "/none/such", "data"): "METASP_DATA=/none/such",
    ("METASP_DATA", "/none/such", TRAIN.replace("{folder}", "cats")): "METASP_DATA=/none/such",
    ("METASP_DATA", "/none/such", "tour 01"): "METASP_DATA=/none/such",
    ("METASP_DATA", "{file}", "data"): "METASP_DATA={file}",
    ("METASP_DATA", "/none/such", "data download mnist"): "METASP_DATA=/none/such",
    ("METASP_DATA", "~nobody-of-this-name/x", "data"): "METASP_DATA=",
    ("METASP_CACHE", "{file}", TRAIN): "{file}",
    ("METASP_CACHE", "{file}/below", TRAIN): "{file}",
    ("METASP_CACHE", "/proc/none", TRAIN): "/proc/none",
    ("METASP_CACHE", "{loop}", TRAIN): "cannot write the cache {loop}",
    ("METASP_CACHE", "a" * 300, TRAIN): "File name too long",
    ("METASP_CACHE", "~nobody-of-this-name/x", TRAIN): "METASP_CACHE=~nobody-of-this-name/x: nobody",
    ("METASP_CACHE", "{folder}", TRAIN): "lies inside the images",
    ("METASP_DATA", "{loop}", "data"): "METASP_DATA={loop}",
    ("METASP_DATA", "a" * 5000, "data"): "METASP_DATA=aaa",
    ("METASP_PROFILE", " lite", "data"): "METASP_PROFILE=' lite'",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What there is: a folder of images, an empty one, files of nonsense; and where nothing is to appear."""
    home = tmp_path_factory.mktemp("home")
    names = ("folder", "empty", "file", "empty_file", "grid", "out", "data", "cache", "loop")
    found = {name: home / name for name in names}
    make_folder(found["folder"], classes=6, train=4, test=2)
    for name in ("empty", "data"):
        found[name].mkdir()
    found["file"].write_bytes(b"nonsense\xff\0")
    found["empty_file"].write_text("")
    found["loop"].symlink_to("loop")
    found["grid"].write_text(GRID.replace("[set]", "memory = [12]\n[set]").format(**found))
    return {name: str(path) for name, path in found.items()} | {"notebooks": str(settings.PROJECT_DIR / "notebooks")}


@pytest.fixture(autouse=True)
def at_home(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METASP_PROFILE", raising=False)
    monkeypatch.setenv("METASP_DATA", places["data"])
    monkeypatch.setenv("METASP_CACHE", places["cache"])


def filled(text, places):
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return text


def written(places):
    home = settings.Path(places["folder"]).parent
    return {path for path in home.rglob("*") if home / "cache" not in (path, *path.parents)} | {
        *settings.Path.cwd().rglob("*")
    }


def refused(line, places, capsys, says):
    """Run a command line that cannot be meant, here."""
    before = written(places)
    words = [filled(word, places) for word in line.split(" ") if word] if isinstance(line, str) else line
    try:
        status = program.main(words)
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    assert status not in (0, None), f"SILENT: {out}"
    *_, last = err.strip().splitlines()
    sentence = re.compile(r"(metasp_lite|python -m metasp_lite[a-z -]*: error): ")
    assert sentence.match(last) or sum(bool(sentence.match(each)) for each in err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert re.search(filled(says, {name: re.escape(place) for name, place in places.items()}), err), f"UNNAMED: {err}"
    assert written(places) == before, f"WRITTEN: {sorted(map(str, written(places) - before))}; {err}"


@pytest.mark.parametrize("line", LINES)
def test_lines_that_cannot_be_meant_are_refused(line, places, capsys):
    refused(line, places, capsys, LINES[line])


@pytest.mark.parametrize(("method", "name", "text"), rows_of_settings())
def test_settings_that_cannot_be_meant_are_refused_by_name(method, name, text, places, capsys):
    words = ["train", "--stream", places["folder"], "--method", method, "--out", places["out"]]
    refused([*words, "--set", f"{name}={text}"], places, capsys, f"{name}|{re.escape(text)}" if text else name)


@pytest.mark.parametrize("text", GRIDS)
def test_grids_that_cannot_be_meant_are_refused(text, places, capsys, tmp_path):
    (tmp_path / "bad.toml").write_text(filled(text, places))
    refused(["grid", str(tmp_path / "bad.toml"), "--out", places["out"]], places, capsys, GRIDS[text])


@pytest.mark.parametrize(("name", "value", "line"), SURROUNDINGS)
def test_surroundings_that_cannot_be_are_refused(name, value, line, places, capsys, monkeypatch):
    monkeypatch.setenv(name, filled(value, places))
    refused(line, places, capsys, SURROUNDINGS[name, value, line])


@pytest.mark.parametrize("line", ["bench nonsense", "stages nonsense", "train --stream x --method er --out x"])
def test_a_real_process_says_the_same(line, places, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "metasp_lite", *line.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert not done.stdout
    assert re.fullmatch(r"metasp_lite: there is no [^\n]*\n", done.stderr)
    assert not list(tmp_path.iterdir())
