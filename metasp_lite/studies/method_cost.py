"""What a whole run of each method costs, beside one of ER: counted operations, and CPU seconds."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from metasp_lite.continual import presets, streams
from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods import METHODS
from metasp_lite.studies.training_cost import through_task

_STREAM, _SEED, _PER_CLASS = "split-fashion-mnist", 0, 100


def study() -> list[dict[str, object]]:
    """Measure every method on one thread; a row each, ER's first."""
    torch.set_num_threads(1)
    names = ["er", *(name for name in METHODS if name != "er")]
    rows = [_measure(name) for name in tqdm(names, desc="methods", unit="method")]
    for row in rows:
        for what in ("operations", "cpu_seconds"):
            row[f"{what}_in_er_runs"] = round(row[what] / rows[0][what], 2)  # type: ignore[operator]
    return rows


def _measure(name: str) -> dict[str, object]:
    """Train ``name`` on the lite stream with a tenth of its images, once to count and once to time; nothing is scored.

    The tenth shortens a run and leaves the shares of its parts alone, but for what is done once a task.
    """
    began = time.perf_counter()
    counter = _Operations()
    _train(name, counter)
    begin = time.process_time()
    _train(name, nullcontext())
    return {
        "method": name,
        "operations": counter.total,
        "cpu_seconds": round(time.process_time() - begin, 2),
        "settings": {"stream": _STREAM, "profile": "lite", "per_class": _PER_CLASS, "threads": 1, "seed": _SEED},
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


class _Operations(TorchDispatchMode):
    """Counts multiplications and additions of matrix products and convolutions, with torch's own formulas.

    Torch's own counter follows modules too, and fails where a gradient is taken at a leaf, as GMED does.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Compute and count."""
        result = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _train(name: str, counted: AbstractContextManager) -> None:
    """Go through all tasks as the trainer does, without files and without scores."""
    run = presets.build(_STREAM, name, _SEED, profile="lite", overrides={"per_class": _PER_CLASS})
    learner = Learner(streams.make(run.stream, device="cpu"), run.recipe, run.seed)
    method = METHODS[name](learner, run.settings)
    with counted:
        for number in range(len(learner.stream.tasks)):
            learner.task_number, learner.epoch = number, 0
            through_task(learner, method)
