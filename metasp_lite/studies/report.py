"""Tables of a grid's runs, from their stored results and nothing else: a run that is missing is a gap."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from metasp_lite import results, settings
from metasp_lite.continual import plan
from metasp_lite.continual.accuracy import SETTINGS
from metasp_lite.continual.run import completed
from metasp_lite.studies.comparison import holm, paired

_MEASURES = {"a1": "A_1", "a_inf": "A_∞", "a_m": "A_m", "bwt": "BWT", "forgetting": "forgetting"}


def grid_file(name: str) -> Path:
    """Return where the project's grid ``name`` is described.

    Raises:
        ValueError: when there is no such grid.
    """
    path = settings.PROJECT_DATA_DIR / "grids" / f"{name}.toml"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.toml"))
        raise ValueError(f"there is no grid {name!r} in {path.parent}; give one of: {', '.join(known)}")
    return path


def stored(name: str) -> pd.DataFrame:
    """Return ``runs`` of the project's grid ``name``, from ``data/results/runs``."""
    return runs(grid_file(name), results.RESULTS_DIR / "runs" / name)


def runs(file: Path, folder: Path) -> pd.DataFrame:
    """Return a row for each run of the grid ``file`` and setting, from what lies in ``folder``; measures in per cent.

    Columns: stream, arm, method, memory, each setting that varies, seed, setting, the measures, seconds, steps.  A run
    that has no result has NaN in place of the numbers.

    Raises:
        ValueError: when the grid cannot be read, or when a result is not the run's.
    """
    rows = []
    for job in plan.read_grid(file, folder):
        found = None
        if (path := job.out / "result.json").exists():
            found = results.read(path)
            if completed(found["run"]) != job.run.as_dict():
                raise ValueError(f"{path} is of another run than {job.name}; move it away and run the grid again")
        name = " ".join([job.arm, *(f"{setting}={value}" for setting, value in job.case.items())])
        arm = {"stream": job.run.stream.data, "arm": name, "method": job.run.method, "lr": job.run.recipe.lr}
        arm |= {"memory": getattr(job.run.settings, "memory", None), **job.case, "seed": job.run.seed}
        for setting in SETTINGS:
            numbers = {name: None if found is None else found[setting][name] for name in _MEASURES}
            ends = {name: None if value is None else 100 * value for name, value in numbers.items()}
            cost = {name: None if found is None else found[name] for name in ("wall_seconds", "steps")}
            rows.append({**arm, "setting": setting, **ends, **cost})
    return pd.DataFrame(rows).astype(dict.fromkeys([*_MEASURES, "wall_seconds"], float))


def published(stream: str, setting: str) -> pd.DataFrame:
    """Return what the MetaSP paper prints of ``stream`` in ``setting``, in per cent, from its tables 2 to 5.

    Columns: table, memory (NaN where the row has none), row as it is printed, method as it is called here, measure,
    mean, sd (NaN where none is printed).

    Raises:
        ValueError: when the paper has no such table.
    """
    paper = pd.read_csv(settings.PROJECT_DATA_DIR / "paper" / "metasp-tables.csv")
    found = paper[(paper["stream"] == stream) & (paper["setting"] == setting)]
    if found.empty:
        known = [" ".join(each) for each in sorted({*zip(paper["stream"], paper["setting"], strict=True)})]
        raise ValueError(f"the paper has no table of {stream} {setting}; give one of: {', '.join(known)}")
    return found.drop(columns=["stream", "setting"]).reset_index(drop=True)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean A_∞ (class-incremental) of each method, in rows, at each learning rate, in columns, in per cent.

    ``table`` holds the runs of one stream of a grid that varies ``lr``.  NaN where the run of a seed is missing: at a
    rate that is too high, training may leave the finite numbers, and then there is no result.
    """
    chosen = table[table["setting"] == "class_incremental"]
    means = chosen.groupby(["method", "lr"])["a_inf"].agg(lambda values: values.mean(skipna=False)).unstack()
    return means.loc[list(dict.fromkeys(chosen["method"]))]


def parts(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the runs that one table compares, with a title: those of a stream, a setting and a size of memory.

    Arms without a memory are in all of a stream's tables.
    """
    for (stream, setting), rows in table.groupby(["stream", "setting"], sort=False):
        for memory in rows["memory"].dropna().unique() if rows["memory"].notna().any() else [None]:
            chosen = rows[(rows["memory"] == memory) | rows["memory"].isna()]
            size = "" if memory is None else f", |M| = {memory:.0f}"
            yield f"{stream}, {SETTINGS[str(setting)]}{size}", chosen


def against(table: pd.DataFrame, reference: str, measure: str = "a_inf") -> pd.DataFrame:
    """Return for each arm its paired difference to the arm ``reference``, over the seeds that both have.

    ``table`` holds the runs of one stream, setting and memory.  The last column is p after Holm's correction for all
    rows.

    Raises:
        ValueError: when the reference is not there, or when an arm has two runs from one seed.
    """
    by_seed = table.pivot(index="seed", columns="arm", values=measure)
    if reference not in by_seed:
        raise ValueError(f"there is no arm {reference!r}; give one of: {', '.join(by_seed)}")
    rows = {}
    for arm in dict.fromkeys(table["arm"]):
        both = by_seed[[arm, reference]].dropna() if arm != reference else by_seed.iloc[:0]
        if len(both) >= 2:
            rows[arm] = vars(paired(both[arm].tolist(), both[reference].tolist()))
    found = pd.DataFrame(rows).T
    return found.assign(corrected=holm(found["p"].tolist())) if len(found) else found


def paper_table(
    table: pd.DataFrame, reference: str, measures: Sequence[str] = ("a1", "a_inf", "a_m", "bwt")
) -> pd.DataFrame:
    """Return the runs of one stream, setting and memory as the papers print them: mean ± sd, and a bullet.

    • says that the arm ``reference`` is better in a paired t-test at 5 %, ∘ that it is worse; no correction, as there.
    An arm of which a seed is missing says how many it has.
    """
    rows: dict[str, dict[str, str]] = {}
    seeds = table.groupby("arm")["seed"].nunique().max()
    for arm, own in table.groupby("arm", sort=False):
        rows[str(arm)] = {}
        for measure in measures:
            values = own[measure].dropna()
            text = "–" if values.empty else f"{values.mean():.2f}"
            text += f" ± {values.std():.2f}" if len(values) > 1 else ""
            text += f" ({len(values)} of {seeds})" if 0 < len(values) < seeds else ""
            rows[str(arm)][_MEASURES[measure]] = text
    for measure in measures:
        known = table.dropna(subset=measure)
        if reference in set(known["arm"]):
            for arm, row in against(known, reference, measure).iterrows():
                better = row["difference"] > 0 if measure != "forgetting" else row["difference"] < 0
                mark = "" if row["p"] >= 0.05 else " ∘" if better else " •"
                rows[str(arm)][_MEASURES[measure]] += mark
    return pd.DataFrame(rows).T


def latex(table: pd.DataFrame, title: str) -> str:
    """Return a table of texts as LaTeX, its signs as mathematics."""
    text = table.to_latex(caption=title, escape=False)
    signs = {"±": r"$\pm$", "•": r"$\bullet$", "∘": r"$\circ$", "A_∞": r"$A_\infty$", "|M|": "$|M|$", "–": "--"}
    signs |= {"A_1": "$A_1$", "A_m": "$A_m$"}
    for sign, command in signs.items():
        text = text.replace(sign, command)
    return text


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts as Markdown; pandas' own needs another package."""
    lines = [["", *map(str, table.columns)], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
