"""The command that trains: what it trains, what it refuses, and what it says then."""

import json
import shlex

import pytest
import torch
from helpers.tiny_stream import arguments_of, make_folder, run_on

from metasp_lite import __main__ as program
from metasp_lite.continual import presets, training
from metasp_lite.continual.methods import METHODS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def lite(monkeypatch):
    monkeypatch.delenv("METASP_PROFILE", raising=False)


def test_the_command_trains_and_the_same_line_again_only_tells(folder, tmp_path, capsys):
    command = [*arguments_of(folder, "er"), "--out", str(tmp_path / "run")]
    assert program.main(command) == 0
    first = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"class-incremental: final accuracy {result['class_incremental']['a_inf']:.4f}, backward" in first
    assert str(tmp_path / "run" / "result.json") in first
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert program.main(command) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
    run = run_on(folder, "er")
    assert result["run"] == json.loads(json.dumps(run.as_dict()))  # the command says the same as Python
    again = training.train(run, tmp_path / "python")
    assert again["epoch_losses"] == result["epoch_losses"]


def test_the_issues_own_line_is_understood(tmp_path, monkeypatch):
    """On the bundled images; the training itself is left out."""
    seen = []
    entry = {"a_inf": 0.5, "bwt": None}
    monkeypatch.setattr(
        training,
        "train",
        lambda run, out, **_: seen.append(run) or dict.fromkeys(("class_incremental", "task_incremental"), entry),
    )
    line = "train --stream split-fashion-mnist --method metasp --memory 200 --seed 1231 --out DIR --set pseudo_steps=2"
    assert program.main(shlex.split(line)) == 0
    assert seen[0] == presets.build("split-fashion-mnist", "metasp", 1231, memory=200, overrides={"pseudo_steps": 2})
    assert seen[0].settings.pseudo_steps == 2


def test_the_list_names_every_stream_and_method(capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["train", "--list"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name in (*presets.STREAMS["lite"], *METHODS, *(method.paper for method in METHODS.values())):
        assert name in shown


def in_place_of(command: list[str], change: list[str]) -> list[str]:
    """Return the command with ``change``, without what it had in its place: a setting is given once."""
    name, value = change[0], change[1].partition("=")[0]
    pairs = list(zip(command[1::2], command[2::2], strict=True))
    taken = {name} if name != "--set" else {f"--{value}"}
    kept = [(a, b) for a, b in pairs if a not in taken and not (a == name == "--set" and b.partition("=")[0] == value)]
    return [command[0], *(word for pair in kept for word in pair), *change]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("--set epochs=many", "epochs=many must be a whole number"),
        ("--set epochs=2.5", "epochs=2.5 must be a whole number"),
        ("--set lr=nan", "lr=nan must be a finite number"),
        ("--set momentum=inf", "momentum=inf must be a finite number"),
        ("--set flip=maybe", "flip=maybe must be true or false"),
        ("--set per_class=few", "per_class=few must be a whole number or none"),
        ("--set epochs", "--set epochs: write it as name=value"),
        ("--set network=vgg", "network='vgg' does not exist; give one of: mlp"),
        ("--set learning_rate=1", "er on STREAM has no setting 'learning_rate'; there are: data, classes_per_task"),
        ("--set memory=0", "memory=0 and memory_batch=4 must be at least 1"),
        ("--memory 0", "memory=0 and memory_batch=4 must be at least 1"),
        ("--set classes_per_task=4", "6 classes do not divide into tasks of 4; give one of [1, 2, 3, 6]"),
        ("--set per_class=11", "has 10 images, 11 were asked for"),
        ("--seed -1", "seed=-1 must be 0 or more"),
        ("--method sgd", "there is no method 'sgd'; give one of: fine-tune"),
        ("--method fine-tune", "fine-tune has no memory; leave the memory size out"),
        ("--stream nowhere", "there is no stream 'nowhere'; give one of: split-fashion-mnist"),
        ("--set epochs=2.0", "epochs=2.0 must be a whole number"),
        ("--set epochs=5 --set epochs=6", "--set epochs is given twice, as 5 and as 6; give it once"),
        ("--set lr=0.1 --set lr=0.1", "--set lr is given twice"),
        ("--memory 5 --set memory=6", "memory is asked for twice: 5, and 6 by name; give one"),
        ("--set padding=-1", "padding=-1 must be 0 pixels or more"),
        ("--set class_seed=-1", "class_seed=-1 must be 0 or more"),
        ("--set class_seed=99999999999999999999", "class_seed=99999999999999999999 must be 0 or more, and below 2**63"),
        ("--set data=", "data is empty; name a data set"),
        ("--set weight_decay=-1", "Invalid weight_decay value: -1.0; give 0 or more"),
        ("--checkpoint-seconds nan", "checkpoint_seconds=nan must be 0 or more"),
        ("--checkpoint-seconds -1", "checkpoint_seconds=-1.0 must be 0 or more"),
        ("--threads 0", "threads=0 must be at least 1"),
        ("--set momentum=-1", "Invalid momentum value: -1.0"),
        ("--set lr=1e30", "try a lower lr than 1e+30 (--set lr=1e+29)"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_sentence(change, sentence, folder, tmp_path, capsys):
    command = [*in_place_of(arguments_of(folder, "er"), change.split()), "--out", str(tmp_path / "run")]
    assert program.main(command) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("metasp_lite: ")
    assert sentence.replace("STREAM", str(folder)) in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_no_stream(name, tmp_path, capsys):
    """``Path("")`` would be the current folder."""
    assert program.main(["train", "--stream", name, "--method", "er", "--out", str(tmp_path / "run")]) == 1
    assert "the stream's name is empty; give a stream or a folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stream_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METASP_DATA", str(tmp_path))
    assert program.main(["train", "--stream", "split-cifar100", "--method", "er", "--out", str(tmp_path / "run")]) == 1
    assert "python -m metasp_lite data download cifar100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (training.InUseError("another process trains in x"), 1, "metasp_lite: another process trains in x"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "the GPU's memory is too small: CUDA out of memory."),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint"),
    ],
)
def test_what_stops_a_run_ends_in_one_sentence(error, status, sentence, folder, tmp_path, monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(training, "train", stop)
    assert program.main([*arguments_of(folder, "er"), "--out", str(tmp_path)]) == status
    assert sentence in capsys.readouterr().err


def test_a_defect_is_not_hidden(folder, tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(training, "train", stop)
    with pytest.raises(RuntimeError, match="shapes differ"):
        program.main([*arguments_of(folder, "er"), "--out", str(tmp_path)])
