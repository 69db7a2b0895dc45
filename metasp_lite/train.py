"""One run: a method on a stream from a seed, to a stored result; stopped anywhere, it goes on as if it had not been."""

import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import torch
from tqdm.auto import tqdm

from metasp_lite import methods, results, streams
from metasp_lite.accuracy import summarise
from metasp_lite.learner import Learner, Recipe
from metasp_lite.methods.base import Method
from metasp_lite.streams import Stream, StreamSettings

FORMAT = 1  # of a checkpoint; another number is not read
Row = list[float]
Watcher = Callable[[Learner, Method], None]


@dataclass(frozen=True)
class Run:
    """All that decides a result."""

    stream: StreamSettings
    recipe: Recipe
    method: str  # a name in methods.METHODS
    settings: object  # of the method
    seed: int

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values, for a file."""
        return dataclasses.asdict(self)


@dataclass
class Progress:
    """What a run has measured so far."""

    class_incremental: list[Row] = dataclasses.field(default_factory=list)
    task_incremental: list[Row] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)  # of training, a task
    steps: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)  # mean of an epoch


def train(
    run: Run,
    out: Path,
    *,
    stream: Stream | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Watcher | None = None,
    progress_bar: bool | None = None,
) -> dict[str, object]:
    """Run to the end, or go on with what lies in ``out``; return what ``out/result.json`` then holds.

    A checkpoint is written at the end of an epoch when ``checkpoint_seconds`` have passed since the last (0: at every
    epoch), and at the end of each task.  ``watch`` is called after each epoch and may look, not touch.  ``stream``
    saves loading it again; it must be what ``run.stream`` makes.

    Raises:
        RuntimeError: when another process trains in ``out``.
        ValueError: when ``out`` holds another run, or a checkpoint that cannot be read.
        FloatingPointError: when a loss is not finite; names task, epoch and step, and what to try.
        OSError: when a checkpoint or the result cannot be written; the last one stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / "lock", timeout=0)
    try:
        with lock:
            finished = _finished(run, out)
            return (
                finished
                if finished is not None
                else _train(run, out, stream or streams.make(run.stream), checkpoint_seconds, watch, progress_bar)
            )
    except filelock.Timeout as error:
        raise RuntimeError(f"another process trains in {out}; wait for it, or give another folder") from error


def _train(
    run: Run, out: Path, stream: Stream, checkpoint_seconds: float, watch: Watcher | None, progress_bar: bool | None
) -> dict[str, object]:
    learner = Learner(stream, run.recipe, run.seed)
    method = methods.METHODS[run.method](learner, run.settings)
    progress = Progress()
    resumed = _resume(run, out, learner, method, progress)
    saved = time.monotonic()
    total = len(stream.tasks) * run.recipe.epochs
    with tqdm(
        total=total,
        initial=learner.task_number * run.recipe.epochs + learner.epoch,
        unit="epoch",
        disable=None if progress_bar is None else not progress_bar,
        desc=run.method,
    ) as bar:
        while learner.task_number < len(stream.tasks):
            if learner.epoch == 0:
                method.begin_task(learner)
                progress.seconds.append(0.0)
            while learner.epoch < run.recipe.epochs:
                began = time.perf_counter()
                loss = _epoch(learner, method, progress)
                progress.seconds[-1] += time.perf_counter() - began
                progress.losses.append(loss)
                learner.epoch += 1
                bar.update()
                bar.set_postfix(task=learner.task_number + 1, epoch=learner.epoch, loss=f"{loss:.3f}")
                if watch:
                    watch(learner, method)
                if learner.epoch < run.recipe.epochs and time.monotonic() - saved >= checkpoint_seconds:
                    _save(run, out, learner, method, progress)
                    saved = time.monotonic()
            began = time.perf_counter()
            method.end_task(learner)
            progress.seconds[-1] += time.perf_counter() - began
            scores = score(learner)
            progress.class_incremental.append(scores[0])
            progress.task_incremental.append(scores[1])
            bar.set_postfix(task=learner.task_number + 1, accuracy=f"{sum(scores[0]) / len(scores[0]):.3f}")
            learner.task_number, learner.epoch = learner.task_number + 1, 0
            _save(run, out, learner, method, progress)
            saved = time.monotonic()
    return _finish(run, out, learner, method, progress, resumed)


def _epoch(learner: Learner, method: Method, progress: Progress) -> float:
    """Train one epoch and return its mean loss (0 where the method has nothing to train on)."""
    total, count = 0.0, 0
    for step, index in enumerate(learner.batches(method.examples(learner))):
        loss = float(method.step(learner, learner.batch(index)))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in task {learner.task_number + 1}, epoch {learner.epoch + 1}, step {step + 1}; "
                f"lower lr={learner.recipe.lr} or weight_decay={learner.recipe.weight_decay}, or the method's own rates"
            )
        total, count = total + loss, count + 1
    progress.steps += count
    return total / max(count, 1)


def score(learner: Learner) -> tuple[Row, Row]:
    """Accuracy on the test examples of every task seen: among all classes seen, and among the task's own.

    Draws nothing and moves nothing; batch-norm takes its running averages.
    """
    learner.model.eval()
    stream, seen = learner.stream, learner.task.classes.stop
    class_incremental, task_incremental = [], []
    with torch.no_grad():
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
    learner.model.train()
    return class_incremental, task_incremental


def _save(run: Run, out: Path, learner: Learner, method: Method, progress: Progress) -> None:
    content = io.BytesIO()
    state = {
        "format": FORMAT,
        "run": json.dumps(run.as_dict(), sort_keys=True),
        "learner": learner.state_dict(),
        "method": method.state_dict(),
        "progress": dataclasses.asdict(progress),
    }
    torch.save(state, content)
    try:
        results.write_atomically(out / "checkpoint.pt", content.getvalue())
    except OSError as error:
        raise OSError(
            f"cannot write {out / 'checkpoint.pt'} ({error.strerror or error}); free some space and run the same "
            "command again: it goes on from the last checkpoint"
        ) from error


def _resume(run: Run, out: Path, learner: Learner, method: Method, progress: Progress) -> bool:
    """Restore the checkpoint in ``out``, if there is one; return whether there was."""
    path = out / "checkpoint.pt"
    if not path.exists():
        return False
    try:
        state = torch.load(path, weights_only=True, map_location=learner.stream.images.device)
        found = state["format"]
    except Exception as error:  # whatever torch's unpickler meets in a damaged file
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); restore it, or delete it to start again"
        ) from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}; give another folder")
    _check_same_run(run, json.loads(state["run"]), path)
    state["learner"]["generator"] = state["learner"]["generator"].cpu()
    learner.load_state_dict(state["learner"])
    method.load_state_dict(state["method"])
    for name, value in state["progress"].items():
        setattr(progress, name, value)
    return True


def _check_same_run(run: Run, stored: dict, path: Path) -> None:
    wanted = json.loads(json.dumps(run.as_dict()))
    if stored == wanted:
        return
    differing = [
        f"{part}.{name}={value.get(name)!r} there, {wanted[part].get(name)!r} here"
        if isinstance(value, dict)
        else f"{part}={value!r} there, {wanted[part]!r} here"
        for part, value in stored.items()
        for name in (sorted({*value, *wanted[part]}) if isinstance(value, dict) else [""])
        if (value.get(name) != wanted[part].get(name) if isinstance(value, dict) else value != wanted[part])
    ]
    raise ValueError(f"{path} is of another run ({'; '.join(differing)}); give another folder")


def _finished(run: Run, out: Path) -> dict[str, object] | None:
    """Return the result in ``out``, if it is there."""
    path = out / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        _check_same_run(run, result["run"], path)
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not the result of a run; move it away, or give another folder") from error
    return result


def _finish(
    run: Run, out: Path, learner: Learner, method: Method, progress: Progress, resumed: bool
) -> dict[str, object]:
    size = len(learner.stream.tasks)
    matrices = {
        setting: [[*row, *[None] * (size - len(row))] for row in rows]
        for setting, rows in (
            ("class_incremental", progress.class_incremental),
            ("task_incremental", progress.task_incremental),
        )
    }
    for matrix in matrices.values():
        if type(method).scores_last_only:
            matrix[:-1] = [[None] * size for _ in matrix[:-1]]
    result = {
        "run": run.as_dict(),
        "source": learner.stream.source,
        **{f"accuracy_{setting}": matrix for setting, matrix in matrices.items()},
        **{setting: dataclasses.asdict(summarise(matrix)) for setting, matrix in matrices.items()},
        "seconds_per_task": [round(seconds, 3) for seconds in progress.seconds],
        "wall_seconds": round(sum(progress.seconds), 3),
        "steps": progress.steps,
        "steps_per_second": round(progress.steps / sum(progress.seconds), 2),
        "epoch_losses": progress.losses,
        "peak_memory_mib": round(_peak_mib(learner.stream.images.device)),
        "resumed": resumed,
    }
    results.write(out / "result.json", result)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return json.loads((out / "result.json").read_text())


def _peak_mib(device: torch.device) -> float:
    """Return the peak of the device's memory: torch's own count on CUDA, else the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
