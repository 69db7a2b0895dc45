"""What a grid asks for: a TOML file read into runs, each with its name, its folder and the line that does it alone."""

import itertools
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from metasp_lite import settings
from metasp_lite.continual import methods as known_methods
from metasp_lite.continual import presets
from metasp_lite.continual.methods.base import MemorySettings
from metasp_lite.continual.run import Run
from metasp_lite.continual.training import check_threads
from metasp_lite.doors import typed
from metasp_lite.settings import Profile

_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """One run of a grid."""

    name: str
    arm: str
    case: dict[str, object]  # what varies, of this run
    run: Run
    out: Path
    threads: int  # that compute it: with another number it would round differently
    command: str  # does the same alone


@typed
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


@typed
def jobs(description: Mapping[str, object], out: Path, threads: int = 1) -> list[Job]:
    """Return the product of what ``description`` lists, as ``settings.GRID_EXAMPLE`` shows; without memory one."""
    grid = _read(description)
    check_threads(threads)
    result: dict[str, Job] = {}
    used: set[str] = set()
    varied = [dict(zip(grid.vary, values, strict=True)) for values in itertools.product(*grid.vary.values())]
    for stream, arm, size, case, seed in itertools.product(grid.streams, grid.arms, grid.memory, varied, grid.seeds):
        method = grid.arms[arm]
        known = presets.names(method)
        memory, own = size if "memory" in known else None, {name: case[name] for name in case if name in known}
        overrides = {**_overrides(grid, stream, arm), **own}
        used |= set(overrides)
        run = presets.build(stream, method, seed, profile=grid.profile, memory=memory, overrides=overrides)
        stored = [f"memory-{run.settings.memory}"] if isinstance(run.settings, MemorySettings) else []
        cases = [f"{setting}-{_text(value)}" for setting, value in own.items()]
        name = "_".join([settings.expanded(stream).resolve().name, arm, *stored, *cases, f"seed-{seed}"])
        if name in result and result[name].run != run:
            raise ValueError(f"two different runs would be called {name}; give the folders of images different names")
        folder = out.absolute() / name
        words = ["train", "--profile", grid.profile, "--stream", stream, "--method", method, "--seed", str(seed)]
        words += [] if memory is None else ["--memory", str(memory)]
        words += ["--threads", str(threads), *_set(overrides), "--out", str(folder)]
        result[name] = Job(name, arm, own, run, folder, threads, shlex.join(["python", "-m", "metasp_lite", *words]))
    if unused := sorted({*grid.shared, *grid.vary} - used):
        raise ValueError(f"no method of this grid has a setting {', '.join(map(repr, unused))}")
    return list(result.values())


@dataclass(frozen=True)
class _Grid:
    """What a grid asks for."""

    streams: list[str]
    arms: dict[str, str]  # the method of each; a method without settings of its own is an arm of its name
    memory: Sequence[int | None]  # None: the stream's own
    seeds: list[int]
    profile: Profile
    vary: dict[str, list[object]]  # settings of all runs that have them, each value in its turn
    shared: dict[str, object]  # the same, of one value
    own: dict[str, dict[str, object]]  # those of one stream, method or arm


def _read(description: Mapping[str, object]) -> _Grid:
    """Check what a file says; by hand, because what a JSON schema would print does not tell how to write it instead."""
    unknown = sorted(set(description) - {"streams", "methods", "arms", "memory", "seeds", "profile", "vary", "set"})
    if unknown:
        raise ValueError(f"{', '.join(map(repr, unknown))} means nothing here; {_reads_like_this()}")
    chosen_streams, names = (_listed(description, name, str) for name in ("streams", "methods"))
    arms, settings_of_arms = _arms(description, names)
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
    tables = {"set": chosen, **{f"set.{name}": each for name, each in own.items()}}
    tables |= {f"arms.{name}": each for name, each in settings_of_arms.items()}
    if "memory" in description and (twice := [where for where, each in tables.items() if "memory" in each]):
        raise ValueError(f"memory is asked for twice: as a list, and in [{twice[0]}]; give one")
    if strangers := sorted(set(own) - {*chosen_streams, *arms.values()}):
        raise ValueError(f"[set.{strangers[0]}] is for no stream or method of this grid")
    vary = description.get("vary", {})
    if not isinstance(vary, dict):
        raise ValueError(f"vary must be a table of lists; {_reads_like_this()}")
    for name, values in vary.items():
        if not isinstance(values, list) or not values or any(isinstance(value, list | dict) for value in values):
            raise ValueError(f"[vary] {name}={values!r} must be a list of values; {_reads_like_this()}")
        if len({_text(value) for value in values}) < len(values):
            raise ValueError(f"[vary] {name}={values} names a value twice; give each once")
        if where := "memory" if name == "memory" else next((at for at, each in tables.items() if name in each), None):
            raise ValueError(f"{name} is asked for twice: in [vary], and in {where}; give one")
    shared = {name: value for name, value in chosen.items() if name not in own}
    return _Grid(chosen_streams, arms, memory, seeds, profile, vary, shared, {**own, **settings_of_arms})


def _arms(description: Mapping[str, object], names: list[str]) -> tuple[dict[str, str], dict[str, dict[str, object]]]:
    """Return the method of each name under ``methods``, and the settings of those that are described as arms."""
    described = description.get("arms", {})
    if not isinstance(described, dict) or not all(isinstance(each, dict) for each in described.values()):
        raise ValueError(f"arms must be tables, one for each arm; {_reads_like_this()}")
    arms, own = {}, {}
    for name, each in described.items():
        if name in known_methods.METHODS:
            raise ValueError(f"[arms.{name}] has the name of a method; give it another")
        if name not in names:
            raise ValueError(f"[arms.{name}] is not among the methods of this grid: {', '.join(names)}; add it")
        if not name.replace("-", "").replace(".", "").isalnum():
            raise ValueError(f"[arms.{name}] becomes part of a folder's name; use letters, digits, - and .")
        if "method" not in each:
            raise ValueError(f"[arms.{name}] has no method; {_reads_like_this()}")
        own[name] = {setting: value for setting, value in each.items() if setting != "method"}
    for name in names:
        method = described[name]["method"] if name in described else name
        if not isinstance(method, str) or method not in known_methods.METHODS:
            raise ValueError(f"there is no method {method!r}; give one of: {', '.join(known_methods.METHODS)}")
        arms[name] = method
    return arms, own


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


def _overrides(grid: _Grid, stream: str, arm: str) -> dict[str, object]:
    """Return the settings of one run: those for all that it has, then of its stream, its method and its arm."""
    known = set(presets.names(grid.arms[arm]))
    shared = {name: value for name, value in grid.shared.items() if name in known}
    parts = (grid.own.get(name, {}) for name in (stream, grid.arms[arm], arm))
    return {name: value for part in (shared, *parts) for name, value in part.items()}


def _set(overrides: Mapping[str, object]) -> list[str]:
    """Return the words that change settings on a command line."""
    words = []
    for name, value in overrides.items():
        words += ["--set", f"{name}={_text(value)}"]
    return words


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
