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
