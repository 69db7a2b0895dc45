"""Many runs at once, on this machine or on a Dask cluster: what a ``plan`` lists, but for what is finished."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import joblib
import torch
from tqdm.auto import tqdm

from metasp_lite.continual import request, streams
from metasp_lite.continual.place import InUseError, require_place
from metasp_lite.continual.plan import Job
from metasp_lite.continual.run import finished, identity
from metasp_lite.continual.streams import Stream, StreamSettings
from metasp_lite.continual.training import check_checkpoint_seconds, computing_with, train
from metasp_lite.continual.workers import pool
from metasp_lite.doors import Count, typed
from metasp_lite.memory import forget_peak

_ONE_RUN = threading.Lock()  # a network's first weights come from torch's one global generator: no two runs in threads


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    state: Literal["finished", "skipped", "failed"]
    error: str = ""


@typed
def run_all(
    chosen: Sequence[Job],
    *,
    workers: Count = 1,
    dask: str | None = None,
    checkpoint_seconds: float = 60.0,
    progress_bar: bool | None = None,
) -> list[Outcome]:
    """Run all that is not finished, in ``workers`` processes or on the cluster whose scheduler is at ``dask``.

    No more processes start than there are runs left.  A run that fails does not stop the others, nor does one whose
    worker dies: it goes on from its checkpoint.

    Raises:
        ValueError: when a run could not be trained or kept (``request``, ``place``), before any has begun.
        OSError: the same, where a file or folder is in the way.
    """
    check_checkpoint_seconds(checkpoint_seconds)
    if strangers := [job for job in chosen if not isinstance(job, Job)]:
        raise ValueError(f"chosen has a {type(strangers[0]).__name__}; give the jobs that plan.read_grid returns")
    outcomes = {job.name: Outcome(job, "skipped") for job in chosen if _finished(job)}
    todo = [job for job in chosen if job.name not in outcomes]
    _require_possible(todo)
    with (
        pool(max(1, min(workers, len(todo))), dask, [job.out for job in todo]) as parallel,
        tqdm(
            total=len(chosen),
            initial=len(outcomes),
            unit="run",
            disable=None if progress_bar is None else not progress_bar,
        ) as bar,
    ):
        for job, error in _each(parallel, todo, checkpoint_seconds):
            outcomes[job.name] = Outcome(job, "failed" if error else "finished", error or "")
            bar.update()
            bar.set_postfix(failed=sum(outcome.state == "failed" for outcome in outcomes.values()))
    return [outcomes[job.name] for job in chosen]


def _require_possible(todo: Sequence[Job]) -> None:
    """Refuse a grid with a run that could not be trained or kept, before any of them begins."""
    _stream.cache_clear()
    try:
        for job in todo:
            require_place(job.out, job.run.stream.data)
            request.check(job.run)
        for job in todo:
            request.check_on(job.run, _stream(job.run.stream))
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from error
    finally:
        _stream.cache_clear()


def _each(
    parallel: Callable[[], joblib.Parallel], todo: Sequence[Job], checkpoint_seconds: float
) -> Iterator[tuple[Job, str | None]]:
    """Run jobs and yield each with its error, as they end.

    A job catches its own errors; what comes out of joblib is the death of a worker (its memory did not suffice, say),
    which ends all that runs beside it.  What had begun by then goes on alone, so that a run which kills its worker
    again takes no other with it; then the rest goes on as before.
    """
    left = {job.name: job for job in todo}

    def attempt(some: Iterable[Job]) -> Iterator[tuple[Job, str | None]]:
        tasks = (joblib.delayed(_run_one)(job, checkpoint_seconds) for job in list(some))
        for name, error in parallel()(tasks):
            yield left.pop(name), error

    while left:
        try:
            yield from attempt(left.values())
        except OSError:  # no worker has come, or the scheduler has gone
            raise
        except Exception:
            begun = [job for job in left.values() if job.out.is_dir()] or list(left.values())[:1]
            for job in begun:
                try:
                    yield from attempt([job])
                except Exception as error:
                    yield left.pop(job.name), f"its worker died ({type(error).__name__}); is there memory enough?"


def _finished(job: Job) -> bool:
    """Whether the job's result is there already, of the images that are here now; anything odd the run itself says."""
    if not (job.out / "result.json").exists():
        return False
    try:
        with computing_with(job.threads):
            return finished(job.out, identity(job.run, _stream(job.run.stream))) is not None
    except (OSError, ValueError):
        return False


def _run_one(job: Job, checkpoint_seconds: float) -> tuple[str, str | None]:
    """Run one job in a worker; return its name and, when it fails, the error as a sentence.

    Called again after its worker has died, it goes on from the checkpoint.
    """
    with _ONE_RUN:
        try:
            forget_peak()
            train(
                job.run,
                job.out,
                stream=_stream(job.run.stream),
                checkpoint_seconds=checkpoint_seconds,
                threads=job.threads,
                progress_bar=False,
                wait=10,
            )
        except (OSError, ValueError, FloatingPointError, InUseError) as error:
            return job.name, str(error)
        except Exception as error:  # a defect in one run must not stop the others
            return job.name, f"{type(error).__name__}: {error}"
    return job.name, None


@functools.lru_cache(maxsize=1)
def _stream(chosen: StreamSettings) -> Stream:
    """Load a stream once for all runs of a worker that follow each other on it."""
    return streams.make(chosen)


def default_workers() -> int:
    """How many runs at once suit this machine: one a core, one where there is a GPU."""
    return 1 if torch.cuda.is_available() else joblib.cpu_count()
