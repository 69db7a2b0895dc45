"""How fast the steps of the paper's size are on a device, what memory they take, and what that makes of the full runs.

A step is timed as training takes it: its batch is fetched and augmented, the memory sampled, and its loss read, for
which the processor waits.  Images are random.  Where the device is a GPU, ``idle`` is the share of a step's time in
which it computes nothing, since the next operation has not been launched yet.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from metasp_lite import settings
from metasp_lite.continual import plan, presets, request
from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods import METHODS, Method
from metasp_lite.continual.methods.base import Rehearsal
from metasp_lite.continual.methods.gdumb import GDumbSettings
from metasp_lite.continual.run import Run
from metasp_lite.continual.streams import Stream
from metasp_lite.continual.training import device_peak_mib
from metasp_lite.memory import forget_peak
from metasp_lite.studies.training_cost import made_up_stream

_GRID = "data/grids/full-cifar10.toml"
FIRST_SEED = 1231  # of the paper's
_TASKS, _IMAGES = 5, 10_000  # of Split CIFAR-10, training images of a task
_MEMORY = 500  # the larger of the grid's
_DATA_MIB = 60_000 * 3 * 32 * 32 / 2**20  # all its images, which lie on the device
_PRECISIONS: dict[str, dict[str, object]] = {
    "float32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"bf16": True},
    "bf16, channels_last": {"bf16": True, "channels_last": True},
    "compile": {"compile": True},
}
_CLOSELY = ("fine-tune", "er", "metasp")  # in each precision; the others in float32
_COMPILED = ("fine-tune", "er")  # MetaSP's own passes are not
_COMPILE_WITHIN = 110.0  # seconds from the beginning in which a compilation may still start: it may take a minute
_WHEN = ("first", "middle", "last")  # epoch of a task
CONVOLUTIONS = attrgetter("backends.cudnn.conv")(torch)  # how CUDA multiplies in them; mypy does not see it
_Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large the images, their network and a step are, and how often a step is timed."""

    side: int = 32  # pixels
    images: int = 2000  # of the made-up stream: ten classes in five tasks
    repetitions: int = 10
    warm_up: int = 2  # steps before them
    changes: Mapping[str, object] = field(default_factory=dict)  # of the full profile's settings
    precisions: tuple[str, ...] = tuple(_PRECISIONS)


PAPER = Size()
#: to see, on a CPU, that all of it runs
SMALL = Size(
    side=8,
    images=100,
    repetitions=1,
    warm_up=0,
    changes={"network": "lite-cnn", "batch": 4, "memory": 20, "memory_batch": 4, "candidates": 5, "anchor_steps": 2},
    precisions=("float32", "bf16, channels_last"),
)


def study(device: torch.device, size: Size, began: float) -> _Row:
    """Measure the methods, and say what full runs would take; ``began`` is ``perf_counter``'s, of the whole check."""
    jobs = [(name, "float32") for name in METHODS]
    jobs += [(name, precision) for precision in size.precisions[1:] for name in _CLOSELY]
    rows, left = list[_Row](), list[str]()
    for name, precision in tqdm(jobs, desc="speed", unit="method"):
        reason = _no_compilation(name, began) if precision == "compile" else None
        if reason is None:
            rows.append(timed_steps(name, precision, device, size))
        else:
            left.append(f"{name}, {precision} ({reason})")
    return {
        "grid": _GRID,
        "network": run_of("er", size.changes).recipe.network,
        "size": {"side": size.side, "images": size.images, "repetitions": size.repetitions, **size.changes},
        "convolutions": CONVOLUTIONS.fp32_precision if device.type == "cuda" else "ieee",
        "speed": rows,
        "not_measured": left,
        "full": full_runs(rows) if size == PAPER else None,
    }


def _no_compilation(name: str, began: float) -> str | None:
    """Say why the steps of a method are not compiled here, or return None."""
    if name not in _COMPILED:
        return "its own passes are not compiled"
    if time.perf_counter() - began > _COMPILE_WITHIN:
        return "the time was spent"
    try:
        request.check(run_of(name, _PRECISIONS["compile"]))
    except ValueError as error:
        return str(error)
    return None


def run_of(name: str, changes: Mapping[str, object]) -> Run:
    """Return a full run of a method on Split CIFAR-10, with those of the ``changes`` that it knows."""
    known = presets.names(name)
    own = {setting: value for setting, value in changes.items() if setting in known}
    return presets.build("split-cifar10", name, FIRST_SEED, profile="full", overrides=own)


def timed_steps(name: str, precision: str, device: torch.device, size: Size) -> _Row:
    """Time the steps of a method in the last of five tasks, with what it then remembers.

    In the first epoch, in which some fill their memory; in a middle one; and in the last, in which MetaSP weighs.
    """
    _forget_peak(device)
    stream = made_up_stream(size.images, size.side, classes_per_task=2, device=device)
    # a rate at which random labels ruin no network, and no more of GDumb's training than shows its step
    asked = {**size.changes, "lr": 1e-3, "dumb_epochs": 1}
    at_once = _fills_at_once(*begun(run_of(name, asked), stream))  # which needs no precision, and no compiler
    run = run_of(name, {**asked, **_PRECISIONS[precision]})
    learner, method = begun(run, stream)
    _remember(learner, method)
    seconds, busy = [], None
    for epoch in (0, 1, run.recipe.epochs - 1):
        learner.epoch = epoch
        examples = method.examples(learner)
        if len(examples) == 0:  # GDumb's, after its first epoch
            seconds.append(0.0)
            continue
        step = _step(learner, method, learner.batches(examples)[0])
        seconds.append(median_seconds(step, device, size.repetitions, size.warm_up))
        if name in _CLOSELY and epoch == run.recipe.epochs - 1:
            busy = busy_seconds(step, device)
    *_, last = seconds
    return {
        "method": name,
        "precision": precision,
        **{f"ms_{when}": round(1000 * each, 3) for when, each in zip(_WHEN, seconds, strict=True)},
        "steps_per_second": round(1 / last, 2) if last else None,
        "idle": round(max(0.0, 1 - busy / last), 3) if busy else None,
        "peak_mib": round(device_peak_mib(device)),
        "fills_at_once": at_once,
    }


def begun(run: Run, stream: Stream, kind: type[Learner] = Learner) -> tuple[Learner, Method]:
    """Return a run's learner and method before their first step, on another stream than its own."""
    learner = kind(stream, run.recipe, run.seed)
    return learner, METHODS[run.method](learner, run.settings)


def _fills_at_once(learner: Learner, method: Method) -> bool:
    """Whether the first task is trained as the others are: no memory waits for the task's end."""
    if not isinstance(method, Rehearsal):
        return True
    method.step(learner, learner.batch(learner.batches(learner.task.train)[0]))
    return len(method.buffer) > 0


def _remember(learner: Learner, method: Method) -> None:
    """Go to the last task, with a memory of the earlier ones; one of them ends as the method lets it."""
    last = len(learner.stream.tasks) - 1
    if isinstance(method, Rehearsal):
        share = method.buffer.capacity // len(learner.stream.tasks)
        for number, task in enumerate(learner.stream.tasks[: last - 1]):
            kept = task.train[:share]
            images, labels = learner.stream.images[kept], learner.stream.labels[kept]
            method.buffer.put(method.buffer.free[: len(kept)], images, labels, number)
    learner.task_number = last - 1
    method.end_task(learner)
    learner.task_number = last
    method.begin_task(learner)


def _step(learner: Learner, method: Method, index: torch.Tensor) -> Callable[[], float]:
    return lambda: float(method.step(learner, learner.batch(index)))


def median_seconds(step: Callable[[], object], device: torch.device, repetitions: int, warm_up: int) -> float:
    """Return the median time of a step, after some that warm up."""
    seconds = []
    for repetition in range(warm_up + repetitions):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        if repetition >= warm_up:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()


def busy_seconds(step: Callable[[], object], device: torch.device) -> float | None:
    """Return for how long a step keeps ``device`` at work, all kernels together; None where none was seen.

    Events around a step would count the gaps between its kernels, too.  On the CPU it is the time in torch's operators.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        step()
        _wait(device)
    microseconds = sum(
        event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in seen.key_averages()
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU) and not event.is_user_annotation
    )
    return microseconds / 1e6 or None


# ---------------------------------------------------------------------------------------------------- full runs


def full_runs(rows: Sequence[_Row]) -> _Row:
    """Say what the grid of full runs on Split CIFAR-10 would take at these speeds, one run after another.

    Not counted: scoring, checkpoints, and what is done when a task ends (RehSel's clusters, HAL's anchors), but for
    GDumb, which trains then.  GEM's steps are those of its last task, the slowest.  Runs with the smaller memory are
    taken to be as slow as those with the larger.
    """
    jobs = plan.read_grid(settings.PROJECT_DIR / _GRID, Path())
    kinds = {job.run.method: job.run for job in jobs}
    plain = {row["precision"]: row["ms_middle"] / 1000 for row in rows if row["method"] == "fine-tune"}
    runs = [
        {
            "method": row["method"],
            "precision": row["precision"],
            "hours": round(_seconds(kinds[row["method"]], row, plain[row["precision"]]) / 3600, 3),
            "mib": round(row["peak_mib"] + _DATA_MIB),
        }
        for row in rows
    ]
    hours = {run["method"]: run["hours"] for run in runs if run["precision"] == "float32"}
    once = [job for job in jobs if getattr(job.run.settings, "memory", _MEMORY) == _MEMORY]
    return {
        "runs": runs,
        **{"grid_runs": len(jobs), "grid_hours": round(sum(hours[job.run.method] for job in jobs), 2)},
        "memory": _MEMORY,
        **{"memory_runs": len(once), "memory_hours": round(sum(hours[job.run.method] for job in once), 2)},
    }


def _seconds(run: Run, row: _Row, plain: float) -> float:
    """Return the seconds of all steps of a full run; ``plain`` is what a step on new examples alone takes."""
    first, middle, last = (row[f"ms_{when}"] / 1000 for when in _WHEN)
    steps, epochs = math.ceil(_IMAGES / run.recipe.batch), run.recipe.epochs
    late = getattr(run.settings, "late_epochs", 1)
    task = steps * (first + (epochs - 1 - late) * middle + late * last)
    begin = task if row["fills_at_once"] else steps * epochs * plain
    after = 0.0
    if isinstance(run.settings, GDumbSettings):
        after = run.settings.dumb_epochs * math.ceil(run.settings.memory / run.settings.memory_batch) * plain
    return begin + (_TASKS - 1) * task + _TASKS * after
