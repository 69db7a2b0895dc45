"""Presets: defaults for every stream and method, and settings changed by name."""

import dataclasses

import pytest
import torch

from metasp_lite.continual import presets, streams
from metasp_lite.continual.learner import Recipe
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.streams import StreamSettings


@pytest.fixture(autouse=True)
def lite(monkeypatch):
    monkeypatch.delenv("METASP_PROFILE", raising=False)


@pytest.mark.parametrize("method", METHODS)
def test_no_name_means_two_settings(method):
    """``--set name=value`` must not have to say whose."""
    parts = (StreamSettings, Recipe, METHODS[method].Settings)
    names = [field.name for part in parts for field in dataclasses.fields(part)]
    assert len(names) == len(set(names))
    assert names == presets.names(method)


@pytest.mark.parametrize("profile", ["lite", "full"])
@pytest.mark.parametrize("stream", presets.STREAMS["lite"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_defaults_on_every_stream(method, stream, profile):
    run = presets.build(stream, method, 1, profile=profile)
    preset = presets.STREAMS[profile][stream]
    assert run.stream == preset.stream
    assert run.recipe.network == ("resnet18" if profile == "full" else preset.recipe.network)
    assert run.recipe.lr == (0.03 if method in ("gem", "a-gem") else 0.1)
    assert getattr(run.settings, "memory", preset.memory) == preset.memory
    assert getattr(run.settings, "late_epochs", preset.late_epochs) == preset.late_epochs < run.recipe.epochs


def test_settings_are_read_as_their_types():
    overrides = {"per_class": "20", "flip": "True", "lr": "1", "variant": "official", "class_seed": "none", "epochs": 3}
    run = presets.build("split-fashion-mnist", "metasp", 1, profile="lite", overrides=overrides)
    found = (run.stream.per_class, run.stream.flip, run.recipe.lr, run.settings.variant, run.stream.class_seed)
    assert found == (20, True, 1.0, "official", None)
    assert type(run.recipe.lr) is float
    assert run.recipe.epochs == 3
    for name, value in {"epochs": True, "flip": 1, "lr": "1e999", "variant": 3, "per_class": 2.0}.items():
        with pytest.raises(ValueError, match=f"^{name}={value} must be"):
            presets.build("split-fashion-mnist", "metasp", 1, overrides={name: value})


def test_a_folder_is_a_stream_wherever_it_is_named_from(folder, monkeypatch):
    """Relative to here, below the data folder, or in full: the same images."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("METASP_DATA", str(folder.parent))
    absolute = presets.build(str(folder), "er", 1)
    assert presets.build(f"./{folder.name}", "er", 1) == absolute
    monkeypatch.chdir("/")
    below = presets.build(folder.name, "er", 1)
    assert below.stream.data == folder.name
    assert torch.equal(streams.make(below.stream).images, streams.make(absolute.stream).images)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Recipe("mlp", epochs=2.0), r"epochs=2\.0 must be a whole number"),
        (lambda: Recipe("mlp", epochs=True), r"epochs=True must be a whole number"),
        (lambda: Recipe("mlp", epochs=1, batch="32"), r"batch='32' must be a whole number"),
        (lambda: Recipe("mlp", epochs=1, lr="0.1"), r"lr='0\.1' must be a finite number"),
        (lambda: Recipe("mlp", epochs=1, momentum=True), r"momentum=True must be a finite number"),
        (lambda: Recipe("mlp", epochs=1, nesterov=1), r"nesterov=1 must be true or false"),
        (lambda: Recipe("mlp", epochs=1, nesterov=True), r"nesterov=True needs momentum"),
        (lambda: Recipe(3, epochs=1), r"network=3 must be a text"),
        (lambda: StreamSettings("mnist", 2.0), r"classes_per_task=2\.0 must be a whole number"),
        (lambda: StreamSettings("mnist", 2, per_class=1.5), r"per_class=1\.5 must be a whole number or none"),
        (lambda: StreamSettings("mnist", 2, size=True), r"size=True must be a whole number or none"),
        (lambda: StreamSettings("", 2), "data is empty"),
        (lambda: METHODS["er"].Settings(memory=2.5), r"memory=2\.5 must be a whole number"),
        (lambda: METHODS["gdumb"].Settings(dumb_epochs=3.0), r"dumb_epochs=3\.0 must be a whole number"),
        (lambda: presets.build("split-fashion-mnist", "er", 1.0), r"seed=1\.0 must be a whole number"),
        (lambda: presets.build("split-fashion-mnist", "er", True), r"seed=True must be a whole number"),
        (lambda: presets.build("split-fashion-mnist", "er", 1, memory=9.0), r"memory=9\.0 must be a whole number"),
        (lambda: presets.build("split-fashion-mnist", "er", 1, memory=5, overrides={"memory": 6}), "asked for twice"),
        (lambda: presets.build("split-fashion-mnist", "er", 1, profile="huge"), "profile='huge' must be one of"),
        (lambda: presets.build("", "er", 1), "the stream's name is empty"),
    ],
)
def test_settings_of_another_type_are_refused_whoever_makes_them(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
