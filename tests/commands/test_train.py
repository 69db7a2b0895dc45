"""The command that trains: what it trains, what it refuses, and what it says then."""

import json
import os
import shlex
import shutil

import pytest
import torch
from helpers.tiny_stream import arguments_of, make_folder, run_on
from PIL import Image

from metasp_lite import __main__ as program
from metasp_lite.continual import place, presets, request, streams, training
from metasp_lite.continual.methods import METHODS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stream(folder):
    return streams.make(run_on(folder, "fine-tune").stream)


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
        (
            "--set class_seed=99999999999999999999",
            "class_seed=99999999999999999999 is too large; give at most 9.22e+18",
        ),
        ("--set data=", "data is asked for twice: the folder STREAM, and  by name; give one"),
        ("--set weight_decay=-1", "Invalid weight_decay value: -1.0; give 0 or more"),
        ("--checkpoint-seconds nan", "checkpoint_seconds=nan must be 0 or more"),
        ("--checkpoint-seconds -1", "checkpoint_seconds=-1.0 must be 0 or more"),
        ("--threads 0", "threads=0 must be at least 1"),
        ("--set momentum=-1", "Invalid momentum value: -1.0"),
        ("--set lr=1e30", "try a lower lr than 1e+30 (--set lr=1e+29)"),
        ("--set lr=0", "lr=0.0 must be positive and finite"),
        ("--set batch=0", "epochs=3 and batch=0 must be at least 1"),
        ("--set batch=99999999999", "batch=99999999999 must be below 2**31"),
        ("--set epochs=0", "epochs=0 and batch=4 must be at least 1"),
        ("--set size=0", "size=0 must be at least 1"),
        ("--set size=4", "lite-cnn cannot take images of 4×4 pixels: they are too small; give size=8 or more"),
        ("--set size=7", "lite-cnn cannot take images of 7×7 pixels: they are too small; give size=8 or more"),
        ("--set size=1000000", "needs at least 4,000.0 GB of memory, and "),
        ("--set padding=8", "padding=8 must be 0 or more, and below the images' 8 pixels"),
        ("--set per_class=0", "per_class=0 must be at least 1"),
        ("--set classes_per_task=0", "classes_per_task=0 must be at least 1"),
        ("--set classes_per_task=12", "6 classes do not divide into tasks of 12; give one of [1, 2, 3, 6]"),
        ("--memory 61", "memory=61 is more than the 60 training images of the stream; give at most 60"),
        ("--set memory_batch=13", "memory_batch=13 is more than memory=12, and could never be drawn; give at most 12"),
        ("--memory -1", "memory=-1 and memory_batch=4 must be at least 1"),
        ("--seed 9223372036854775808", "seed=9223372036854775808 must be 0 or more, and below 2**63"),
        ("--threads -1", "threads=-1 must be at least 1"),
        ("--threads 1000000000", "threads=1000000000 must be at most "),
    ],
)
def test_what_cannot_be_trained_ends_in_one_sentence(change, sentence, folder, tmp_path, capsys):
    command = [*in_place_of(arguments_of(folder, "er"), change.split()), "--out", str(tmp_path / "run")]
    assert program.main(command) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("metasp_lite: ")
    assert sentence.replace("STREAM", str(folder)) in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "memory", "changed", "most"),
    [
        ("er", None, {}, "memory=200 is more than the 60 training images of the stream; give at most 60 (--memory 60)"),
        ("gss", 12, {"compared": 13}, "compared=13 is more than memory=12, and could never be drawn; give at most 12"),
        ("metasp", 12, {"validation": 13}, "validation=13 is more than memory=12, and could never be drawn"),
        ("metasp", 30, {"validation": 21}, "validation=21 is more than the 20 training images of a task"),
    ],
)
def test_more_than_there_is_is_refused(method, memory, changed, most, folder, tmp_path, capsys):
    """The stream's own memory, too: a result that says 200 where 60 were stored would stand beside others of 200."""
    words = ["train", "--stream", str(folder), "--method", method, "--out", str(tmp_path / "run"), "--set", "epochs=1"]
    words += [word for name, value in changed.items() for word in ("--set", f"{name}={value}")]
    assert program.main([*words, *([] if memory is None else ["--memory", str(memory)])]) == 1
    assert most in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["er", "gss", "metasp"])
def test_as_many_as_there_are_may_be_drawn_and_a_default_above_takes_all(method, folder, stream):
    """Of a memory of 7; 32 of it, and GSS's 10, are defaults."""
    largest = {"memory_batch": 7, "compared": 7, "validation": 7}
    overrides = {name: value for name, value in largest.items() if name in presets.names(method)}
    for given in ({}, overrides):
        run = presets.build(str(folder), method, 1, profile="lite", memory=7, overrides=given)
        request.check(run)
        request.check_on(run, stream)


@pytest.mark.parametrize(
    ("method", "changed", "sentence"),
    [
        ("fine-tune", {"batch": 19}, "batch=19 cuts 20 images so that one stands alone, and the batch-norm of"),
        ("fine-tune", {"batch": 1}, "give batch=2, or a larger size"),
        ("er-late", {"batch": 19}, "give batch=18, or a larger size"),
        ("joint", {"batch": 59}, "batch=59 cuts 60 images so that one stands alone"),
        ("er", {"batch": 1}, "batch=1 cuts 1 images so that one stands alone"),
        ("gdumb", {"memory_batch": 11}, "memory_batch=11 cuts 12 images so that one stands alone"),
    ],
)
def test_a_batch_of_one_that_batch_norm_cannot_take_is_seen_beforehand(
    method, changed, sentence, folder, tmp_path, capsys
):
    """Images of 8×8 pixels are a single one where ResNet's last batch-norm sees them."""
    command = arguments_of(folder, method, network="resnet18-20", **changed)
    assert program.main([*command, "--out", str(tmp_path / "run")]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_batch_of_one_is_no_matter_where_it_is_joined_or_has_more_pixels(folder, stream):
    for changed in ({"network": "lite-cnn"}, {"network": "mlp"}):
        request.check_on(run_on(folder, "fine-tune", batch=19, **changed), stream)
    request.check_on(run_on(folder, "er", batch=19, network="resnet18-20"), stream)


def in_the_images(folder, tmp_path):
    return folder / "train" / "run"


def around_the_images(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder.parent)
    return tmp_path / "link"


def a_file(folder, tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


def below_a_file(folder, tmp_path):
    return a_file(folder, tmp_path) / "deeper" / "run"


def a_folder_for_the_result(folder, tmp_path):
    (tmp_path / "run" / "result.json").mkdir(parents=True)
    return tmp_path / "run"


def a_folder_for_the_lock(folder, tmp_path):
    (tmp_path / "run" / "lock").mkdir(parents=True)
    return tmp_path / "run"


def circular_link(folder, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a" / "run"


@pytest.mark.parametrize(
    ("place_of", "sentence"),
    [
        (in_the_images, "lie in each other; give a folder beside them"),
        (around_the_images, "lie in each other; give a folder beside them"),
        (a_file, "file is no folder); permit it, or give another place"),
        (below_a_file, "file is no folder); permit it, or give another place"),
        (a_folder_for_the_result, "result.json (it is a folder)"),
        (a_folder_for_the_lock, "lock (it is a folder)"),
        (circular_link, "cannot write "),
    ],
)
def test_a_folder_that_cannot_keep_the_run_is_refused_before_the_images_are_read(
    place_of, sentence, folder, tmp_path, monkeypatch, capsys
):
    out = place_of(folder, tmp_path)
    before = sorted(path for root in (folder, tmp_path) for path in root.rglob("*"))
    monkeypatch.setattr(streams, "make", None)
    assert program.main([*arguments_of(folder, "er"), "--out", str(out)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("metasp_lite: ")
    assert sentence in shown
    assert sorted(path for root in (folder, tmp_path) for path in root.rglob("*")) == before


@pytest.mark.parametrize("line", ["train --stream x --method er --out", "grid x.toml --out", "tour --out"])
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_of_a_folder_is_not_the_current_one(line, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main([*line.split(), name])
    assert stopped.value.code == 2
    assert "--out: the name is empty; give one, . for the current folder" in capsys.readouterr().err


def test_images_in_a_folder_whose_name_is_no_text_are_refused_and_results_go_there_all_the_same(
    folder, tmp_path, capsys
):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(folder, odd / "images")
    command = arguments_of(folder, "fine-tune", epochs=1)
    assert program.main([*in_place_of(command, ["--stream", str(odd / "images")]), "--out", str(tmp_path / "run")]) == 1
    assert "is no UTF-8, and no result could name it; rename the folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert program.main([*command, "--out", str(odd / "run")]) == 0
    assert (odd / "run" / "result.json").is_file()


def test_grey_test_images_beside_coloured_ones_are_refused_before_any_is_decoded(tmp_path, monkeypatch, capsys):
    images = make_folder(tmp_path / "images", classes=2)
    for path in (images / "test").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    monkeypatch.setenv("METASP_CACHE", str(tmp_path / "cache"))
    assert program.main([*arguments_of(images, "er"), "--out", str(tmp_path / "run")]) == 1
    assert "has coloured training and grey test images; store both splits in one mode" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_compile_without_a_compiler_is_refused(folder, tmp_path, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found in (None, 'g++')")

    monkeypatch.setattr(torch, "compile", fail)
    assert program.main([*arguments_of(folder, "er", compile="true"), "--out", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().err
    assert "compile=True needs a C++ compiler that works (No working C++ compiler found in" in shown
    assert "install g++, or leave compile out" in shown
    assert not (tmp_path / "run").exists()


def test_what_was_asked_and_refused_leaves_the_folder_of_others_as_it_was(folder, tmp_path, capsys):
    (tmp_path / "result.json").write_text("[1]")
    assert program.main([*arguments_of(folder, "er"), "--out", str(tmp_path)]) == 1
    assert "result.json is not the result of a run; move it away" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


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
        (place.InUseError("another process trains in x"), 1, "metasp_lite: another process trains in x"),
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
