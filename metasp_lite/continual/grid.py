"""Many runs at once: the product of streams, methods, memory sizes and seeds, on this machine or on a Dask cluster."""

import functools
import itertools
import shlex
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import joblib
import torch
from tqdm.auto import tqdm

from metasp_lite import settings
from metasp_lite.continual import presets, request, streams
from metasp_lite.continual.methods.base import MemorySettings
from metasp_lite.continual.place import InUseError, require_place
from metasp_lite.continual.run import Run, finished, identity
from metasp_lite.continual.streams import Stream, StreamSettings
from metasp_lite.continual.training import check_checkpoint_seconds, check_threads, computing_with, train
from metasp_lite.continual.workers import pool
from metasp_lite.memory import forget_peak
from metasp_lite.settings import Profile

_T = TypeVar("_T")
_ONE_RUN = threading.Lock()  # a network's first weights come from torch's one global generator: no two runs in threads


@dataclass(frozen=True)
class Job:
    """One run of a grid."""

    name: str
    run: Run
    out: Path
    threads: int  # that compute it: with another number it would round differently
    command: str  # does the same alone


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    state: Literal["finished", "skipped", "failed"]
    error: str = ""


def read_grid(path: Path, out: Path, threads: int = 1) -> list[Job]:
    """Return the runs that a TOML file asks for, each with its own folder below ``out``, on so many threads.

    Raises:
        ValueError: when the file cannot be read, is no TOML, or asks for something that does not exist.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); give the TOML file of a grid") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        description = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}; {_reads_like_this()}") from error
    try:
        return jobs(description, out, threads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def jobs(description: Mapping[str, object], out: Path, threads: int = 1) -> list[Job]:
    """Return the product of what ``description`` lists, as ``settings.GRID_EXAMPLE`` shows; without memory one."""
    grid = _read(description)
    check_threads(threads)
    result: dict[str, Job] = {}
    used: set[str] = set()
    for stream, method, size, seed in itertools.product(grid.streams, grid.methods, grid.memory, grid.seeds):
        memory = size if "memory" in presets.names(method) else None
        overrides = _overrides(grid, stream, method)
        used |= set(overrides)
        run = presets.build(stream, method, seed, profile=grid.profile, memory=memory, overrides=overrides)
        stored = [f"memory-{run.settings.memory}"] if isinstance(run.settings, MemorySettings) else []
        name = "_".join([settings.expanded(stream).resolve().name, method, *stored, f"seed-{seed}"])
        if name in result and result[name].run != run:
            raise ValueError(f"two different runs would be called {name}; give the folders of images different names")
        folder = out.absolute() / name
        words = ["train", "--profile", grid.profile, "--stream", stream, "--method", method, "--seed", str(seed)]
        words += [] if memory is None else ["--memory", str(memory)]
        words += ["--threads", str(threads), *_set(overrides), "--out", str(folder)]
        result[name] = Job(name, run, folder, threads, shlex.join(["python", "-m", "metasp_lite", *words]))
    if unused := sorted(set(grid.shared) - used):
        raise ValueError(f"no method of this grid has a setting {', '.join(map(repr, unused))}")
    return list(result.values())


@dataclass(frozen=True)
class _Grid:
    """What a grid asks for."""

    streams: list[str]
    methods: list[str]
    memory: Sequence[int | None]  # None: the stream's own
    seeds: list[int]
    profile: Profile
    shared: dict[str, object]  # settings of all runs that have them
    own: dict[str, dict[str, object]]  # those of one stream or method


def _read(description: Mapping[str, object]) -> _Grid:
    """Check what a file says; by hand, because what a JSON schema would print does not tell how to write it instead."""
    unknown = sorted(set(description) - {"streams", "methods", "memory", "seeds", "profile", "set"})
    if unknown:
        raise ValueError(f"{', '.join(map(repr, unknown))} means nothing here; {_reads_like_this()}")
    chosen_streams, chosen_methods = (_listed(description, name, str) for name in ("streams", "methods"))
    memory: Sequence[int | None] = _listed(description, "memory", int) if "memory" in description else [None]
    seeds = _listed(description, "seeds", int)
    asked = description.get("profile", settings.profile())
    profile = next((known for known in settings.PROFILES if known == asked), None)
    if profile is None:
        raise ValueError(f"profile={asked!r} must be one of: {', '.join(settings.PROFILES)}")
    chosen = description.get("set", {})
    if not isinstance(chosen, dict):
        raise ValueError(f"set must be a table; {_reads_like_this()}")
    own = {name: value for name, value in chosen.items() if isinstance(value, dict)}
    if "memory" in description and (
        twice := [where for where, each in (("set", chosen), *own.items()) if "memory" in each]
    ):
        where = "set" if twice[0] == "set" else f"set.{twice[0]}"
        raise ValueError(f"memory is asked for twice: as a list, and in [{where}]; give one")
    if strangers := sorted(set(own) - {*chosen_streams, *chosen_methods}):
        raise ValueError(f"[set.{strangers[0]}] is for no stream or method of this grid")
    shared = {name: value for name, value in chosen.items() if name not in own}
    return _Grid(chosen_streams, chosen_methods, memory, seeds, profile, shared, own)


def _listed(description: Mapping[str, object], name: str, kind: type[_T]) -> list[_T]:
    values = description.get(name)
    if not (isinstance(values, list) and values and all(type(value) is kind for value in values)):
        what = "names" if kind is str else "whole numbers"
        raise ValueError(f"{name} must be a list of {what}; {_reads_like_this()}")
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{name} lists {twice[0]!r} twice; give it once")
    return values


def _reads_like_this() -> str:
    return f"a grid reads like this:\n{settings.GRID_EXAMPLE.read_text(encoding='utf-8')}"


def _overrides(grid: _Grid, stream: str, method: str) -> dict[str, object]:
    """Return the settings of one run: those for all that it has, then those for its stream, then for its method."""
    known = set(presets.names(method))
    shared = {name: value for name, value in grid.shared.items() if name in known}
    return {**shared, **grid.own.get(stream, {}), **grid.own.get(method, {})}


def _set(overrides: Mapping[str, object]) -> list[str]:
    """Return the words that change settings on a command line."""
    words = []
    for name, value in overrides.items():
        words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return words


def run_all(
    chosen: Sequence[Job],
    *,
    workers: int = 1,
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
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
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
