"""What decides a run, what it measures, and the result it leaves."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metasp_lite import results
from metasp_lite.continual import checkpoint, draws, methods, streams
from metasp_lite.continual.accuracy import SETTINGS, Accuracies, summarise
from metasp_lite.continual.learner import Recipe
from metasp_lite.continual.methods.base import MethodSettings
from metasp_lite.continual.streams import Stream, StreamSettings

_SURROUNDINGS = ("images", "device", "threads", "draws")  # beside the run, what decides its result


@dataclass(frozen=True)
class Run:
    """All that decides a result."""

    stream: StreamSettings
    recipe: Recipe
    method: str  # a name in methods.METHODS
    settings: MethodSettings
    seed: int

    def __post_init__(self) -> None:
        """Refuse what no run can follow."""
        if self.method not in methods.METHODS:
            raise ValueError(f"there is no method {self.method!r}; give one of: {', '.join(methods.METHODS)}")
        wanted = methods.METHODS[self.method].Settings
        if type(self.settings) is not wanted:
            raise ValueError(f"{self.method} takes {wanted.__name__}, not {type(self.settings).__name__}")
        if type(self.seed) is not int:
            raise ValueError(f"seed={self.seed!r} must be a whole number")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must be 0 or more, and below 2**63")
        part: StreamSettings | Recipe | MethodSettings
        for part in (self.stream, self.recipe, self.settings):
            for name, value in dataclasses.asdict(part).items():
                if type(value) is int and name != "class_seed" and abs(value) >= 2**31:
                    raise ValueError(f"{name}={value} must be below 2**31")
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{name}={value} must be a finite number")

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values, for a file."""
        return dataclasses.asdict(self)


@dataclass
class Progress:
    """What a run has measured so far."""

    class_incremental: list[Accuracies] = field(default_factory=list)
    task_incremental: list[Accuracies] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of training, a task
    steps: int = 0
    losses: list[float] = field(default_factory=list)  # mean of an epoch
    peak_mib: float = 0.0
    resumed: int = 0  # how often it was stopped and went on
    begun_with: dict[str, object] = field(default_factory=results.provenance)


def identity(run: Run, stream: Stream) -> dict[str, object]:
    """Return all that decides a result, as plain values: the run, its images, how numbers are rounded and drawn.

    On a CPU the number of threads decides in what order sums are taken; None on a GPU, where it does not.
    """
    device = stream.images.device.type
    threads = torch.get_num_threads() if device == "cpu" else None
    surroundings = {"images": streams.fingerprint(stream), "device": device, "threads": threads}
    return {**run.as_dict(), **surroundings, "draws": draws.VERSION}


def finished(out: Path, here: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result in ``out`` as JSON has it, or None where there is none; ``here`` is the run's ``identity``.

    What an older result does not say (of its images it knew the source alone) cannot contradict, but for its draws; a
    setting that did not exist then had its default.

    Raises:
        ValueError: when it is of another run, of other images or another number of threads, or no result at all.
    """
    path = out / "result.json"
    try:
        result = results.read(path)
        there = {**completed(result["run"]), **_surroundings(result)}
        _require_told(result)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the result of a run; move it away, or give another folder") from error
    said = {name: value for name, value in here.items() if name in there or name not in _SURROUNDINGS}
    said["images"] = {name: value for name, value in here["images"].items() if name in there["images"]}
    checkpoint.require_same(path, there, said)
    return result


def completed(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run as a result tells it, with the defaults of the settings that did not exist when it was written.

    So a setting that is added must have a default with which everything stays as it was.

    Raises:
        KeyError: when the method is unknown.
    """
    kinds = {"stream": StreamSettings, "recipe": Recipe, "settings": methods.METHODS[told["method"]].Settings}
    defaults = {
        part: {
            field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING
        }
        for part, kind in kinds.items()
    }
    return {**told, **{part: {**defaults[part], **told[part]} for part in kinds}}


def _require_told(result: dict[str, Any]) -> None:
    """Refuse what has the name of a result and not the numbers that are shown of one."""
    for setting in SETTINGS:
        accuracy, change = result[setting]["a_inf"], result[setting]["bwt"]
        if type(accuracy) not in (int, float) or not 0 <= accuracy <= 1:
            raise ValueError(f"{setting} has no accuracy")
        if change is not None and (type(change) not in (int, float) or not -1 <= change <= 1):
            raise ValueError(f"{setting} has no backward transfer")


def _surroundings(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says of that which decided it beside its run; an older one says it as its origin."""
    origin = {"images": {"source": result["source"]}, "draws": 1, **result.get("obtained_with", {}), **result}
    known = {name: origin[name] for name in _SURROUNDINGS if name in origin}
    on_gpu = known.get("device", "cpu") != "cpu"
    return {**known, "images": dict(known["images"]), **({"threads": None} if on_gpu else {})}


def summary(
    run: Run, here: Mapping[str, Any], stream: Stream, progress: Progress, *, scores_last_only: bool
) -> dict[str, object]:
    """Sum up a run that has come to its end, as ``result.json`` holds it; ``here`` is its ``identity``.

    ``scores_last_only`` leaves out the scores before the last task, where a method's mean nothing.
    """
    size, seconds = len(stream.tasks), sum(progress.seconds)
    matrices: dict[str, list[list[float | None]]] = {}
    for setting in SETTINGS:
        rows = [[*row, *[None] * (size - len(row))] for row in getattr(progress, setting)]
        if scores_last_only:
            rows[:-1] = [[None] * size for _ in rows[:-1]]
        matrices[setting] = rows
    return {
        "run": run.as_dict(),
        "source": stream.source,
        **{name: here[name] for name in _SURROUNDINGS},
        **{f"accuracy_{setting}": matrix for setting, matrix in matrices.items()},
        **{setting: dataclasses.asdict(summarise(matrix)) for setting, matrix in matrices.items()},
        "seconds_per_task": [round(each, 3) for each in progress.seconds],
        "wall_seconds": round(seconds, 3),
        "steps": progress.steps,
        "steps_per_second": round(progress.steps / seconds, 2),
        "epoch_losses": progress.losses,
        "peak_memory_mib": round(progress.peak_mib),
        "resumed": progress.resumed,
        "begun_with": progress.begun_with,
    }
