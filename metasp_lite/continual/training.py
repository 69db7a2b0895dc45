"""One run: a method on a stream from a seed, to a stored result; stopped anywhere, it goes on as if it had not been."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from tqdm.auto import tqdm

from metasp_lite import results
from metasp_lite.continual import methods, request, streams
from metasp_lite.continual.accuracy import Accuracies
from metasp_lite.continual.checkpoint import go_on_from, load_checkpoint, save_checkpoint
from metasp_lite.continual.learner import Learner, evaluating
from metasp_lite.continual.methods.base import Method
from metasp_lite.continual.place import CHECKPOINT, RESULT, held, require_place
from metasp_lite.continual.run import Progress, Run, finished, identity, summary
from metasp_lite.continual.streams import Stream
from metasp_lite.doors import Nonnegative, typed
from metasp_lite.memory import peak_mib

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MOST_THREADS = 64  # as another machine may have had, on which a run began
Watcher = Callable[[Learner, Method], None]


@dataclass
class _State:
    """A run in memory: what a checkpoint holds."""

    learner: Learner
    method: Method
    progress: Progress

    def state_dict(self) -> dict[str, object]:
        self.progress.peak_mib = max(self.progress.peak_mib, device_peak_mib(self.learner.stream.images.device))
        return {
            "learner": self.learner.state_dict(),
            "method": self.method.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def load_state_dict(self, state: dict) -> None:
        self.learner.load_state_dict(state["learner"])
        self.method.load_state_dict(state["method"])
        self.progress = Progress(**state["progress"])
        self.progress.resumed += 1


@typed
def train(
    run: Run,
    out: Path,
    *,
    stream: Stream | None = None,
    checkpoint_seconds: float = 60.0,
    threads: int | None = None,
    watch: Watcher | None = None,
    progress_bar: bool | None = None,
    wait: Nonnegative = 0.0,
) -> dict[str, Any]:
    """Run to the end, or go on with what lies in ``out``; return what ``out/result.json`` then holds.

    A checkpoint is written at the end of an epoch when ``checkpoint_seconds`` have passed since the last (0: at every
    epoch), and at the end of each task.  ``watch`` is called after each epoch and may look, not touch.  ``stream``
    saves loading it again; it must have been made from ``run.stream``.  ``progress_bar`` None shows one on a terminal.

    Deterministic for a seed, a machine and a number of ``threads`` (None: as many as torch takes).

    Raises:
        InUseError: when another process trains in ``out`` and has not stopped after ``wait`` seconds.
        ValueError: when ``stream`` is another than the run's; when ``out`` holds another run, one of other images or
            threads, or a checkpoint that cannot be read; when the images, the network, the memory and the machine
            cannot be brought together (``request``).
        FloatingPointError: when a loss is not finite; names task, epoch and step, and what to try.
        OSError: when a checkpoint or the result cannot be written; the last one stays.
    """
    check_checkpoint_seconds(checkpoint_seconds)
    if stream is not None:
        request.require_own(run, stream)
    require_place(out, run.stream.data)
    with computing_with(threads):
        to_train = not (out / RESULT).exists()  # what is finished is only told again
        if to_train:
            request.check(run)
        stream = stream or streams.make(run.stream)
        state = _begin(run, stream) if to_train else None
        with held(out, wait):
            here = identity(run, stream)
            result = finished(out, here)
            if result is None:
                result = _train(run, out, state or _begin(run, stream), here, checkpoint_seconds, watch, progress_bar)
            (out / CHECKPOINT).unlink(missing_ok=True)
            return result


def check_checkpoint_seconds(seconds: float) -> None:
    """Refuse a time between checkpoints that is none; infinity writes one after each task alone.

    Raises:
        ValueError: when it is negative or NaN.
    """
    if not seconds >= 0:
        raise ValueError(f"checkpoint_seconds={seconds} must be 0 or more; 0 writes one after every epoch")


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no run can have (None: torch's own); a few too many only take turns.

    Raises:
        ValueError: when it is below 1, or far above this machine's cores.
    """
    if threads is None:
        return
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if threads < 1:
        raise ValueError(f"threads={threads} must be at least 1")
    if threads > most:
        raise ValueError(f"threads={threads} must be at most {most}; this machine has {os.cpu_count()} cores")


@contextlib.contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Let torch compute with so many threads for a while (None: as before).

    Raises:
        ValueError: when there is none.
    """
    check_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@typed
def score(learner: Learner) -> tuple[Accuracies, Accuracies]:
    """Accuracy on the test examples of every task seen: among all classes seen, and among the task's own.

    Draws nothing and moves nothing; batch-norm takes its running averages.
    """
    stream, seen = learner.stream, learner.task.classes.stop
    class_incremental, task_incremental = [], []
    with torch.no_grad(), evaluating(learner.model):
        for task in stream.tasks[: learner.task_number + 1]:
            right = torch.zeros(2, dtype=torch.int64)
            for index in task.test.split(500):
                logits = learner.model(stream.augmentation.normalise(stream.test_images[index]))
                labels = stream.test_labels[index]
                own = logits[:, task.classes.start : task.classes.stop].argmax(dim=1) + task.classes.start
                right[0] += (logits[:, :seen].argmax(dim=1) == labels).sum().cpu()
                right[1] += (own == labels).sum().cpu()
            class_incremental.append(int(right[0]) / len(task.test))
            task_incremental.append(int(right[1]) / len(task.test))
    return class_incremental, task_incremental


def _begin(run: Run, stream: Stream) -> _State:
    """Return the run before its first step, when it can be trained on the stream."""
    request.check_on(run, stream)
    learner = Learner(stream, run.recipe, run.seed)
    return _State(learner, methods.METHODS[run.method](learner, run.settings), Progress())


def _train(
    run: Run,
    out: Path,
    state: _State,
    here: Mapping[str, object],
    checkpoint_seconds: float,
    watch: Watcher | None,
    progress_bar: bool | None,
) -> dict[str, Any]:
    """Go through the tasks: train each for its epochs, close it, score all tasks seen."""
    learner, method, stream = state.learner, state.method, state.learner.stream
    if stream.images.is_cuda:
        torch.cuda.reset_peak_memory_stats(stream.images.device)
    path = out / CHECKPOINT
    stored = load_checkpoint(path, here, stream.images.device)
    if stored is not None:
        go_on_from(path, state.load_state_dict, stored)
    progress = state.progress
    saved, epochs = time.monotonic(), run.recipe.epochs
    with tqdm(
        total=len(stream.tasks) * epochs,
        initial=learner.task_number * epochs + learner.epoch,
        unit="epoch",
        desc=run.method,
        disable=None if progress_bar is None else not progress_bar,
    ) as bar:
        while learner.task_number < len(stream.tasks):
            if learner.epoch == 0:
                progress.seconds.append(0.0)
                _timed(progress, method.begin_task, learner)
            while learner.epoch < epochs:
                loss = _timed(progress, _epoch, learner, method, progress)
                progress.losses.append(loss)
                learner.epoch += 1
                bar.update()
                bar.set_postfix(_figures(learner, progress))
                if watch:
                    watch(learner, method)
                if learner.epoch < epochs and time.monotonic() - saved >= checkpoint_seconds:
                    save_checkpoint(path, here, state.state_dict())
                    saved = time.monotonic()
            _timed(progress, method.end_task, learner)
            _require_finite_weights(learner, method)
            for rows, row in zip((progress.class_incremental, progress.task_incremental), score(learner), strict=True):
                rows.append(row)
            bar.set_postfix(_figures(learner, progress))
            learner.task_number, learner.epoch = learner.task_number + 1, 0
            save_checkpoint(path, here, state.state_dict())
            saved = time.monotonic()
    results.write(out / RESULT, summary(run, here, stream, progress, scores_last_only=method.scores_last_only))
    return results.read(out / RESULT)


def _timed(progress: Progress, function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """Call a part of the training and add its seconds to those of the task."""
    began = time.perf_counter()
    try:
        result = function(*arguments, **named)
    except ValueError as error:
        if request.SINGLE not in str(error):
            raise
        raise ValueError(
            "batch-norm met a batch of a single small image, which it cannot train on; in another folder, try another "
            "batch, memory or memory_batch, or larger images (--set size=16)"
        ) from error
    progress.seconds[-1] += time.perf_counter() - began
    return result


def _epoch(learner: Learner, method: Method, progress: Progress) -> float:
    """Train one epoch and return its mean loss (0 where the method has nothing to train on)."""
    total, count = 0.0, 0
    for index in learner.batches(method.examples(learner)):
        count += 1
        try:
            loss = float(method.step(learner, learner.batch(index)))
        except FloatingPointError as error:
            raise _diverged(str(error).partition(";")[0], learner, method, f", step {count}") from error
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss}", learner, method, f", step {count}")
        total += loss
    _require_finite_weights(learner, method)
    progress.steps += count
    return total / max(count, 1)


def _require_finite_weights(learner: Learner, method: Method) -> None:
    """Stop before a network that the last step has ruined is scored or kept."""
    if not all(bool(value.isfinite().all()) for value in learner.model.state_dict().values()):
        raise _diverged("the weights are no longer finite", learner, method, "")


def _diverged(what: str, learner: Learner, method: Method, step: str) -> FloatingPointError:
    recipe = learner.recipe
    where = f"task {learner.task_number + 1}, epoch {min(learner.epoch + 1, recipe.epochs)}{step}"
    ways = [f"a lower lr than {recipe.lr:g} (--set lr={recipe.lr / 10:g})"]
    ways += [f"weight_decay={recipe.weight_decay:g}"] if recipe.weight_decay else []
    ways += [f"momentum={recipe.momentum:g}"] if recipe.momentum else []
    others = "".join(f", or {way}" for way in method.remedies())
    return FloatingPointError(f"{what} in {where}; in another folder, try {', lower '.join(ways)}{others}")


def _figures(learner: Learner, progress: Progress) -> dict[str, object]:
    """What the progress bar shows beside itself; the accuracy is that after the last task that has ended."""
    figures = {"task": learner.task_number + 1, "epoch": learner.epoch, "loss": f"{progress.losses[-1]:.3f}"}
    if progress.class_incremental:
        row = progress.class_incremental[-1]
        figures["accuracy"] = f"{sum(row) / len(row):.3f}"
    return figures


def device_peak_mib(device: torch.device) -> float:
    """Return the peak of the device's memory: torch's own count on CUDA, else the largest size of this process."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_mib()
