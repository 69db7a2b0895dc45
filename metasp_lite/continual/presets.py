"""From names to a run: the defaults of each stream in each profile, and settings changed by name."""

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metasp_lite import settings
from metasp_lite.continual import fields, methods
from metasp_lite.continual.learner import Recipe
from metasp_lite.continual.methods.base import Method, MethodSettings
from metasp_lite.continual.run import Run
from metasp_lite.continual.streams import StreamSettings
from metasp_lite.doors import number_in, typed
from metasp_lite.settings import Profile

_Part = StreamSettings | Recipe | MethodSettings  # of a run


@dataclass(frozen=True)
class _Preset:
    """A stream and how a network is trained on it, where nothing else is asked for."""

    stream: StreamSettings
    recipe: Recipe
    memory: int  # |M|
    late_epochs: int = 5  # of a task, in which MetaSP and ER-late rehearse


_MLP, _CNN, _RESNET = Recipe("mlp", epochs=10), Recipe("lite-cnn", epochs=50), Recipe("resnet18", epochs=50)
# Data set, classes a task, images a class; network; |M|; late epochs where they are not 5.
_LITE = {
    "split-fashion-mnist": _Preset(StreamSettings("fashion-mnist", 2, 1000, source="bundled"), _MLP, 200, 2),
    "split-mnist": _Preset(StreamSettings("mnist", 2, 1000), _MLP, 200, 2),
    "split-cifar10": _Preset(StreamSettings("cifar10", 2, 500, size=16, padding=1, flip=True), _CNN, 200),
    "split-cifar100": _Preset(StreamSettings("cifar100", 10, 100, size=16, padding=1, flip=True), _CNN, 500),
    "split-mini-imagenet": _Preset(StreamSettings("mini-imagenet", 20, 100, size=32, padding=2, flip=True), _CNN, 500),
}
# The paper's: batches of 32 new and 32 stored examples, rehearsal in the last 5 of 50 epochs; it also has |M| = 300 for
# CIFAR-10 and 1,000 for the two others.
_FULL = {
    "split-fashion-mnist": _Preset(StreamSettings("fashion-mnist", 2), _RESNET, 500),
    "split-mnist": _Preset(StreamSettings("mnist", 2), _RESNET, 500),
    "split-cifar10": _Preset(StreamSettings("cifar10", 2, padding=4, flip=True), _RESNET, 500),
    "split-cifar100": _Preset(StreamSettings("cifar100", 10, padding=4, flip=True), _RESNET, 500),
    "split-mini-imagenet": _Preset(StreamSettings("mini-imagenet", 20, size=84, padding=8, flip=True), _RESNET, 500),
}
STREAMS: dict[Profile, dict[str, _Preset]] = {"lite": _LITE, "full": _FULL}
_ANY_FOLDER = StreamSettings(".", classes_per_task=2)  # of which only the second holds
_FOLDERS: dict[Profile, _Preset] = {
    "lite": _Preset(_ANY_FOLDER, _CNN, memory=200),
    "full": _Preset(_ANY_FOLDER, _RESNET, memory=500),
}
# The authors print no rate; these differ from 0.1 in the sister code base.
_RATES = {"gem": 0.03, "a-gem": 0.03}


@typed
def build(
    stream: str,
    method: str,
    seed: int,
    *,
    profile: Profile | None = None,
    memory: int | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Run:
    """Return the run of ``method`` on ``stream``: a named stream, or a folder of images (tasks of 2 classes).

    ``overrides`` changes settings of the stream, the recipe or the method by their names; texts are read as the type
    of the setting.  ``profile`` None is ``settings.profile()``, ``memory`` None the stream's preset.

    Raises:
        ValueError: for a stream, method or setting that does not exist, or a value that it cannot have.
    """
    kind = _method(method).Settings
    if memory is not None and "memory" not in fields.types_of(kind):
        raise ValueError(f"{method} has no memory; leave the memory size out")
    if memory is not None and "memory" in (overrides or {}):
        raise ValueError(f"memory is asked for twice: {memory}, and {(overrides or {})['memory']} by name; give one")
    changes = overrides or {}
    for name in changes:
        if name not in names(method):
            raise ValueError(f"{method} on {stream} has no setting {name!r}; there are: {', '.join(names(method))}")
    if profile is not None and profile not in STREAMS:
        raise ValueError(f"profile={profile!r} must be one of: {', '.join(STREAMS)}")
    preset = _preset(stream, profile or settings.profile())
    if "data" in changes and stream not in STREAMS[profile or settings.profile()]:
        raise ValueError(f"data is asked for twice: the folder {stream}, and {changes['data']} by name; give one")
    defaults = {"memory": preset.memory if memory is None else memory, "late_epochs": preset.late_epochs}
    own = {name: value for name, value in defaults.items() if name in fields.types_of(kind)}
    recipe = dataclasses.replace(preset.recipe, lr=_RATES.get(method, preset.recipe.lr))
    recipe = dataclasses.replace(recipe, **_changes_of(Recipe, changes))
    chosen = kind(**{**own, **_changes_of(kind, changes)})
    if "late_epochs" in changes and (late := getattr(chosen, "late_epochs", 0)) > recipe.epochs:
        raise ValueError(f"late_epochs={late} is more than the epochs={recipe.epochs} of a task; give at most so many")
    return Run(dataclasses.replace(preset.stream, **_changes_of(StreamSettings, changes)), recipe, method, chosen, seed)


@typed
def names(method: str) -> list[str]:
    """Return what ``overrides`` may change: settings of the stream, the recipe and the method."""
    return [name for part in (StreamSettings, Recipe, _method(method).Settings) for name in fields.types_of(part)]


def _changes_of(kind: type[_Part], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return those of ``changes`` that belong to ``kind``, each as the type that its field names when this runs."""
    wanted = fields.types_of(kind)
    return {name: _converted(name, value, wanted[name]) for name, value in changes.items() if name in wanted}


def _converted(name: str, value: object, wanted: object) -> object:
    """Return ``value`` as the type ``wanted``; a text is read, a number is checked.

    By hand: of what is installed, traitlets takes 1 for true, true for 1, and NaN for a number.

    Raises:
        ValueError: when it is not of that type, or not a finite number; the message names the setting and its type.
    """
    kind, optional = fields.kind_of(wanted)
    if optional and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    result = _read(value, kind)
    if result is None or (isinstance(result, float) and not math.isfinite(result)):
        raise ValueError(f"{name}={value} must be {fields.IN_WORDS[kind]}{' or none' if optional else ''}")
    return result


def _read(value: object, kind: type) -> object:
    """Return ``value`` as ``kind``, or None where it is something else."""
    if isinstance(value, str) and kind is not str:
        if kind is bool:
            return {"true": True, "false": False}.get(value.lower())
        try:
            return number_in(value, kind)
        except ValueError:
            return None
    if isinstance(value, bool):
        return value if kind is bool else None
    if kind is float and isinstance(value, int):
        return float(value)
    return value if isinstance(value, kind) else None


def _method(name: str) -> type[Method]:
    if name not in methods.METHODS:
        raise ValueError(f"there is no method {name!r}; give one of: {', '.join(methods.METHODS)}")
    return methods.METHODS[name]


def _preset(name: str, profile: Profile) -> _Preset:
    if not name.strip():
        raise ValueError("the stream's name is empty; give a stream or a folder of images, . for the current one")
    known = STREAMS[profile]
    if name in known:
        return known[name]
    path = settings.expanded(name)
    folder = str(path.resolve()) if os.path.isdir(path) else name  # absolute: the same run from wherever it goes on
    if os.path.isdir(path) or os.path.isdir(settings.data_dir() / name):  # Path.is_dir fails where a name is too long
        return dataclasses.replace(_FOLDERS[profile], stream=dataclasses.replace(_ANY_FOLDER, data=folder))
    raise ValueError(f"there is no stream {name!r}; give one of: {', '.join(known)}; or a folder of images")
