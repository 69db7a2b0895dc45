"""From names to a run: the defaults of each stream in each profile, and settings changed by name."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metasp_lite import methods, settings, streams
from metasp_lite.learner import Recipe
from metasp_lite.methods.base import Method
from metasp_lite.runs import Run
from metasp_lite.settings import Profile
from metasp_lite.streams import StreamSettings


@dataclass(frozen=True)
class Preset:
    """How a stream is trained on, where nothing else is asked for."""

    recipe: Recipe
    memory: int  # |M|
    late_epochs: int  # of a task, in which MetaSP and ER-late rehearse


_LITE_MLP = Preset(Recipe("mlp", epochs=10), memory=200, late_epochs=2)
_LITE_CNN = Preset(Recipe("lite-cnn", epochs=50), memory=500, late_epochs=5)
_LITE_SMALL = dataclasses.replace(_LITE_CNN, memory=200)
# the paper's: batches of 32 new and 32 stored examples, rehearsal in the last 5 of 50 epochs; it also has |M| = 300 for
# CIFAR-10 and 1,000 for the two others
_FULL = Preset(Recipe("resnet18", epochs=50), memory=500, late_epochs=5)

PRESETS: dict[Profile, dict[str, Preset]] = {
    "lite": {
        "split-fashion-mnist": _LITE_MLP,
        "split-mnist": _LITE_MLP,
        "split-cifar10": _LITE_SMALL,
        "split-cifar100": _LITE_CNN,
        "split-mini-imagenet": _LITE_CNN,
    },
    "full": dict.fromkeys(streams.FULL, _FULL),
}
FOLDER_PRESETS: dict[Profile, Preset] = {"lite": _LITE_SMALL, "full": _FULL}
STREAMS: dict[Profile, dict[str, StreamSettings]] = {"lite": streams.LITE, "full": streams.FULL}
# The authors print no rate; these differ from 0.1 in the sister code base.
RATES = {"gem": 0.03, "a-gem": 0.03}


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
    if memory is not None and "memory" not in _fields(kind):
        raise ValueError(f"{method} has no memory; leave the memory size out")
    profile = profile or settings.profile()
    chosen, preset = _stream(stream, profile)
    defaults = {"memory": preset.memory if memory is None else memory, "late_epochs": preset.late_epochs}
    own = {name: value for name, value in defaults.items() if name in _fields(kind)}
    recipe = dataclasses.replace(preset.recipe, lr=RATES.get(method, preset.recipe.lr))
    parts = [(StreamSettings, dataclasses.asdict(chosen)), (Recipe, dataclasses.asdict(recipe)), (kind, own)]
    for name, value in (overrides or {}).items():
        for part, values in parts:
            if name in _fields(part):
                values[name] = converted(name, value, _fields(part)[name])
                break
        else:
            raise ValueError(f"{method} on {stream} has no setting {name!r}; there are: {', '.join(names(method))}")
    stream_settings, recipe, method_settings = (part(**values) for part, values in parts)
    return Run(stream_settings, recipe, method, method_settings, seed)


def names(method: str) -> list[str]:
    """Return what ``overrides`` may change: settings of the stream, the recipe and the method."""
    return [name for part in (StreamSettings, Recipe, _method(method).Settings) for name in _fields(part)]


def converted(name: str, value: object, wanted: object) -> object:
    """Return ``value`` as the type ``wanted``; a text is read, a number is checked.

    Raises:
        ValueError: when it is not of that type, or not a finite number; the message names the setting and its type.
    """
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if type(None) in options and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    kind = next(option for option in options if option is not type(None))
    result = _read(value, kind)
    if result is None or (kind is float and not math.isfinite(result)):
        what = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}[kind]
        raise ValueError(f"{name}={value} must be {what}{' or none' if len(options) > 1 else ''}")
    return result


def _read(value: object, kind: type) -> object:
    """Return ``value`` as ``kind``, or None where it is something else."""
    if isinstance(value, str) and kind is not str:
        if kind is bool:
            return {"true": True, "false": False}.get(value.lower())
        try:
            return kind(value)
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


def _fields(kind: type) -> dict[str, object]:
    """Return the names of a dataclass's fields and their types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _stream(name: str, profile: Profile) -> tuple[StreamSettings, Preset]:
    known: Sequence[str] = list(STREAMS[profile])
    if name in known:
        return STREAMS[profile][name], PRESETS[profile][name]
    path = Path(name).expanduser()
    if path.is_dir():  # absolute: the same run from wherever it goes on
        return StreamSettings(str(path.resolve()), classes_per_task=2), FOLDER_PRESETS[profile]
    if (settings.data_dir() / name).is_dir():
        return StreamSettings(name, classes_per_task=2), FOLDER_PRESETS[profile]
    raise ValueError(f"there is no stream {name!r}; give one of: {', '.join(known)}; or a folder of images")
