"""Whether a GPU computes what the CPU computes: one step of every method, and a run that is killed and goes on.

How fast it is, ``gpu_speed`` measures.  ``study`` puts both together.  On the CPU the same is asked of the CPU itself.
"""

import dataclasses
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods import METHODS, Method
from metasp_lite.continual.methods.base import Rehearsal
from metasp_lite.continual.place import CHECKPOINT, RESULT
from metasp_lite.continual.run import Run
from metasp_lite.continual.training import Watcher, train
from metasp_lite.studies import gpu_speed
from metasp_lite.studies.training_cost import made_up_stream, through_task

_CPU = torch.device("cpu")
#: How far a step may end from the CPU's float64 step, in lengths of that step: so many roundings, 2e-12 in float64 and
#: 1e-3 in float32.  On the CPU float32 is about ten away (1e-6).  The factor of a thousand is for convolutions by other
#: algorithms, which may lose two digits, and for a ReLU that falls to its other side; wrong crops are 0.05 away, or
#: more.
_ROUNDINGS = 1e4
_EXACT = torch.float64  # in which also the memory must be the same
_NOISE = 10.0  # how many times as far as two whole runs from each other a resumed run may be from them
_CHANGES = {  # of the full profile's settings, for the step: a small network, and an epoch that rehearses
    **{"network": "lite-cnn", "epochs": 2, "late_epochs": 2, "batch": 8, "memory": 16, "memory_batch": 8},
    **{"candidates": 12, "dumb_epochs": 1, "anchor_steps": 3},
}
_IMAGES = (40, 16)  # so many, pixels
_KILLED_AT = 6  # epoch of ten: in the middle of the third task
_Row = dict[str, Any]


def study(device: torch.device) -> _Row:
    """Return all that is asked of ``device``, with how fast it is, and whether all bounds are kept.

    A GPU is timed at the paper's size, the CPU at one that takes seconds: only to see that all of it runs.
    """
    size = gpu_speed.PAPER if device.type == "cuda" else gpu_speed.SMALL
    began = time.perf_counter()
    with _without_tf32():
        steps = equal_steps(device)
    resumed = goes_on_after_a_kill(device)
    speed = gpu_speed.study(device, size, began)
    kept = [*(row["within"] for row in steps), resumed["within"]]
    return {
        "device": _name_of(device),
        "seed": gpu_speed.FIRST_SEED,
        "steps": steps,
        "resumed": resumed,
        **speed,
        "within": all(kept),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Let CUDA multiply float32 numbers in full: its TF32, torch's default in convolutions, keeps 10 bits of 23."""
    kinds = torch.backends.cuda.matmul, gpu_speed.CONVOLUTIONS
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


# ------------------------------------------------------------------------------------------------------ one step


def equal_steps(device: torch.device) -> list[_Row]:
    """Take the same step of each method on the CPU in float64 and on ``device`` in float64 and in float32.

    The step is the first of a second task, in an epoch that rehearses; the end of the task follows, which is where
    GDumb trains and where some fill the memory.  ``error`` is ‖θ' − θ'₀‖/‖θ'₀ − θ‖ with the CPU's θ'₀, or the same of
    batch-norm's running averages where that is larger.
    """
    rows = []
    for name in tqdm(METHODS, desc="one step", unit="method"):
        start = _after_one_task(name)
        before = _numbers(start["learner"]["model"])
        truth, stored = _one_step_more(name, start, _CPU, _EXACT)
        for dtype in (_EXACT, torch.float32):
            found, kept = _one_step_more(name, start, device, dtype)
            pairs = zip(found, truth, before, strict=True)
            error = max(float((each - exact).norm() / (exact - old).norm()) for each, exact, old in pairs)
            same, bound = all(map(torch.equal, kept, stored)), _ROUNDINGS * torch.finfo(dtype).eps
            rows.append(
                {
                    "method": name,
                    "numbers": str(dtype).removeprefix("torch."),
                    "error": error,
                    "bound": bound,
                    "same_memory": same,
                    "within": error <= bound and (same or dtype is not _EXACT),
                }
            )
    return rows


class _Learner(Learner):
    """A learner whose networks have torch's default numbers, so that float64 can be asked for."""

    def new_network(self, seed: int) -> nn.Sequential:
        """Build a network as every learner does."""
        return super().new_network(seed).to(torch.get_default_dtype())


def _after_one_task(name: str) -> dict:
    """Return the state of a method that has been trained on the first of two tasks, on the CPU in float32."""
    learner, method = gpu_speed.begun(gpu_speed.run_of(name, _CHANGES), made_up_stream(*_IMAGES))
    through_task(learner, method)
    return {"learner": learner.state_dict(), "method": method.state_dict()}


def _one_step_more(
    name: str, start: Mapping, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the network after one more step and the end of the task, and the images and labels that are stored."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        learner, method = gpu_speed.begun(
            gpu_speed.run_of(name, _CHANGES), made_up_stream(*_IMAGES, device=device), _Learner
        )
        learner.load_state_dict(_moved(start["learner"], device, dtype))
        method.load_state_dict(_moved(start["method"], device, dtype))
        learner.task_number, learner.epoch = 1, 0
        method.begin_task(learner)
        method.step(learner, learner.batch(learner.batches(method.examples(learner))[0]))
        method.end_task(learner)
    finally:
        torch.set_default_dtype(default)
    kept = [method.buffer.images.cpu(), method.buffer.labels.cpu()] if isinstance(method, Rehearsal) else []
    return _numbers(learner.model.state_dict()), kept


def _moved(state: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a copy of a state on ``device``, its fractions as ``dtype``."""
    if isinstance(state, Tensor):
        return state.to(device, dtype if state.is_floating_point() else None, copy=True)
    if isinstance(state, Mapping):
        return {name: _moved(value, device, dtype) for name, value in state.items()}
    return [_moved(value, device, dtype) for value in state] if isinstance(state, list | tuple) else state


def _numbers(state: Mapping[str, Tensor]) -> list[Tensor]:
    """Return a network's parameters and its running averages, each as one float64 vector on the CPU."""
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    for name, value in state.items():
        if value.is_floating_point():
            parts["running_" in name].append(value.double().cpu().flatten())
    return [torch.cat(part) for part in parts.values()]


# -------------------------------------------------------------------------------------------------------- a kill


def goes_on_after_a_kill(device: torch.device) -> _Row:
    """Train a small run twice to its end, and once in a process that is killed and then from its checkpoint to the end.

    Where the two whole runs are equal to the last bit, the third must be, too; else it may be ten times as far from
    the first as the second is.  ``difference`` is the largest of all weights.
    """
    run = gpu_speed.run_of("metasp-rehsel", {**_CHANGES, "late_epochs": 1})
    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (Path(folder) / name for name in ("first", "second", "third"))
        (weights, result), (again, _) = _trained(run, first, device), _trained(run, second, device)
        _killed_in_a_child(run, third, device)
        left = (third / CHECKPOINT).exists() and not (third / RESULT).exists()
        others, resumed = _trained(run, third, device)
    noise, difference = (float((each - weights).abs().max()) for each in (again, others))
    told = ("accuracy_class_incremental", "accuracy_task_incremental", "epoch_losses", "steps")
    same = all(resumed[name] == result[name] for name in told)
    went_on = left and resumed["resumed"] == 1
    return {
        "method": run.method,
        "killed_in_epoch": _KILLED_AT,
        "went_on": went_on,
        "difference_of_whole_runs": noise,
        "difference": difference,
        "same_losses_and_accuracies": same,
        "within": went_on and difference <= _NOISE * noise and (same or noise > 0),
    }


def _trained(run: Run, out: Path, device: torch.device, watch: Watcher | None = None) -> tuple[Tensor, dict]:
    """Train a run to its end, or go on with it; return the network's numbers ``(P,)`` and the result."""
    seen: list[Learner] = []

    def look(learner: Learner, method: Method) -> None:
        seen[:] = [learner]
        if watch is not None:
            watch(learner, method)

    made_up = made_up_stream(*_IMAGES, classes_per_task=2, device=device)
    stream = dataclasses.replace(made_up, made_from=run.stream)  # in place of the run's own; the result is thrown away
    result = train(run, out, stream=stream, checkpoint_seconds=0, threads=1, watch=look, progress_bar=False)
    return torch.cat(_numbers(seen[0].model.state_dict())), result


def _killed_in_a_child(run: Run, out: Path, device: torch.device) -> None:
    child = multiprocessing.get_context("spawn").Process(target=killed, args=(run, out, str(device)))
    child.start()
    child.join()


def killed(run: Run, out: Path, device: str) -> None:
    """Train a run and end this process in the middle of it, with no time to clean up: after an epoch's last step."""
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, which a killed process leaves behind
    epochs: list[int] = []

    def stop(*_: object) -> None:
        epochs.append(1)
        if len(epochs) == _KILLED_AT:
            os._exit(1)

    _trained(run, out, torch.device(device), stop)
