"""Reports: every cell is recomputed by hand from the runs; a missing run is a gap, a foreign one is refused."""

import json
import statistics

import pandas as pd
import pytest
import scipy.stats
from helpers.tiny_stream import SETTINGS, make_folder

from metasp_lite import __main__, results
from metasp_lite.continual import grid, plan
from metasp_lite.course import uses_plots
from metasp_lite.studies import report

FEW = {name: SETTINGS[name] for name in ("epochs", "batch", "lr", "momentum")}
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A grid of two methods and an arm, run on tiny images: (file, folder, results by arm and seed)."""
    place = tmp_path_factory.mktemp("report")
    folder = make_folder(place / "images")
    lines = [f"streams = {json.dumps([str(folder)])}", f'methods = ["fine-tune", "er", "half"]\nseeds = {SEEDS}']
    lines += ['profile = "lite"', "memory = [12]", "[set]", *(f"{k} = {json.dumps(v)}" for k, v in FEW.items())]
    lines += ['[arms.half]\nmethod = "er"\nmemory_batch = 3']
    file, out = place / "tiny.toml", place / "runs"
    file.write_text("\n".join(lines), encoding="utf-8")
    jobs = plan.read_grid(file, out)
    assert {outcome.state for outcome in grid.run_all(jobs)} == {"finished"}
    return file, out, {(job.arm, job.run.seed): results.read(job.out / "result.json") for job in jobs}


def test_a_row_is_a_run_in_a_setting(tiny):
    file, out, found = tiny
    table = report.runs(file, out)
    assert len(table) == 2 * 3 * 3
    for _, row in table.iterrows():
        result = found[row["arm"], row["seed"]]
        for measure in ("a1", "a_inf", "a_m", "bwt", "forgetting"):
            assert row[measure] == pytest.approx(100 * result[row["setting"]][measure])
        assert row["steps"] == result["steps"]


def test_the_papers_table_by_hand(tiny):
    file, out, found = tiny
    (title, part), (other, _) = report.parts(report.runs(file, out))
    assert title.endswith("class-incremental, |M| = 12")
    assert other.endswith("task-incremental, |M| = 12")
    shown = report.paper_table(part, "half")
    ends = {arm: [100 * found[arm, seed]["class_incremental"]["a_inf"] for seed in SEEDS] for arm in shown.index}
    assert [*shown.index] == ["fine-tune", "er", "half"]
    for arm, values in ends.items():
        text = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        gains = [a - b for a, b in zip(values, ends["half"], strict=True)]
        if statistics.stdev(gains) > 1e-9:
            test = scipy.stats.ttest_rel(values, ends["half"])
            text += "" if test.pvalue >= 0.05 else " •" if test.statistic < 0 else " ∘"
        elif abs(gains[0]) > 1e-9:  # the same in every seed
            text += " •" if gains[0] < 0 else " ∘"
        assert shown.loc[arm, "A_∞"] == text


def test_differences_are_paired_by_seed_and_corrected_for_their_number(tiny):
    file, out, found = tiny
    (_, part), _ = report.parts(report.runs(file, out))
    rows = report.against(part, "half", "a1")
    assert [*rows.index] == ["fine-tune", "er"]
    for arm, row in rows.iterrows():
        gains = [
            100 * (found[arm, s]["class_incremental"]["a1"] - found["half", s]["class_incremental"]["a1"])
            for s in SEEDS
        ]
        assert row["difference"] == pytest.approx(statistics.mean(gains))
        assert row["corrected"] >= row["p"]
    with pytest.raises(ValueError, match="there is no arm 'gem'; give one of: er, fine-tune, half"):
        report.against(part, "gem")


def test_a_missing_run_is_a_gap_and_a_run_of_something_else_is_refused(tiny, tmp_path):
    file, out, found = tiny
    few = tmp_path / "runs"
    for name in ("images_fine-tune_seed-1", "images_er_memory-12_seed-1", "images_er_memory-12_seed-2"):
        (few / name).mkdir(parents=True)
        (few / name / "result.json").write_bytes((out / name / "result.json").read_bytes())
    (_, part), _ = report.parts(report.runs(file, few))
    shown = report.paper_table(part, "half")["A_∞"]
    end = 100 * found["fine-tune", 1]["class_incremental"]["a_inf"]
    assert shown["fine-tune"] == f"{end:.2f} (1 of 3)"
    assert shown["er"].endswith("(2 of 3)")
    assert shown["half"] == "–"
    source = out / "images_er_memory-12_seed-2" / "result.json"
    (few / "images_er_memory-12_seed-1" / "result.json").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="is of another run than images_er_memory-12_seed-1"):
        report.runs(file, few)


def test_the_command_prints_and_writes_tables_in_three_formats(tiny, tmp_path, capsys):
    file, out, found = tiny
    words = ["report", str(file), "--runs", str(out), "--against", "er"]
    assert __main__.main(words) == 0
    printed = capsys.readouterr().out
    mean = statistics.mean(100 * found["half", seed]["task_incremental"]["bwt"] for seed in SEEDS)
    assert "| half |" in printed
    assert f"{mean:.2f} ± " in printed
    assert "A_∞ against er, in points:" in printed
    assert __main__.main([*words, "--format", "latex", "--out", str(tmp_path / "t.tex")]) == 0
    assert capsys.readouterr().out == f"9 of 9 runs are there; written to {tmp_path / 't.tex'}\n"
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == 2
    assert r"$\pm$" in text
    assert text.isascii()
    assert __main__.main([*words, "--format", "csv", "--out", str(tmp_path / "t.csv")]) == 0
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 18
    for kind, start in {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}.items():
        path = tmp_path / f"t.{kind}"
        assert __main__.main([*words, "--figure", str(path)]) == 0
        assert path.read_bytes().startswith(start)


def test_the_figure_has_a_panel_for_each_table_and_the_differences_in_it(tiny, monkeypatch, tmp_path):
    file, out, _ = tiny
    drawn = []
    monkeypatch.setattr(uses_plots, "forest", lambda ax, rows: drawn.append(rows))
    assert (
        __main__.main(["report", str(file), "--runs", str(out), "--against", "er", "--figure", str(tmp_path / "t.png")])
        == 0
    )
    for (_, part), rows in zip(report.parts(report.runs(file, out)), drawn, strict=True):
        found = report.against(part, "er")
        assert list(rows) == list(found.index) == ["fine-tune", "half"]
        for arm, row in rows.items():
            assert row == tuple(found.loc[arm, ["difference", "low", "high"]])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "there is no grid 'nothing' in"),
        (["nothing.toml"], "nothing.toml cannot be read"),
        (
            ["selection-fashion-mnist", "--figure", "t.docx"],
            "--figure t.docx: give the name of a file that ends in .png",
        ),
        (["selection-fashion-mnist", "--runs", "nowhere"], "nowhere has no run of selection-fashion-mnist.toml; run"),
    ],
)
def test_the_command_says_what_is_not_there(words, sentence, capsys):
    assert __main__.main(["report", *words]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1 or "reads like this" in said


# --- the paper, and rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "setting", "memory", "method", "numbers"),
    [  # read in the paper's tables once more, by eye
        ("split-cifar10", "class_incremental", 300, "er", {"a1": 96.73, "a_inf": 34.19, "a_m": 53.72, "bwt": -78.18}),
        ("split-cifar10", "task_incremental", 500, "metasp-rehsel", {"a1": 97.30, "a_inf": 91.41, "bwt": -7.36}),
        ("split-cifar100", "class_incremental", 1000, "gmed", {"a1": 87.29, "a_m": 38.69, "bwt": -76.24}),
        ("split-mini-imagenet", "task_incremental", 500, "gss", {"a_inf": 28.67, "bwt": -28.72}),
        ("split-cifar10", "class_incremental", 500, "no-clusters", {"a1": 96.60, "a_inf": 38.50, "a_m": 62.38}),
    ],
)
def test_what_the_paper_prints(stream, setting, memory, method, numbers):
    paper = report.published(stream, setting)
    rows = paper[(paper["memory"] == memory) & (paper["method"] == method) & (paper["table"] != 5)]
    rows = rows if len(rows) else paper[(paper["memory"] == memory) & (paper["method"] == method)]
    found = rows.set_index("measure")["mean"]
    assert {name: found[name] for name in numbers} == numbers


def test_the_papers_tables_are_whole():
    """Tables 2 and 3: ten methods with two memories and four measures, GDumb with one; two references."""
    for stream, methods in (("split-cifar10", 9), ("split-cifar100", 9), ("split-mini-imagenet", 7)):
        for setting in ("class_incremental", "task_incremental"):
            paper = report.published(stream, setting)
            assert len(paper[paper["table"] != 5]) == 2 + 2 + methods * 2 * 4
            assert paper["mean"].between(-100, 100).all()
            bwt = paper["measure"] == "bwt"
            assert (paper[bwt]["mean"] < 0).all()
            assert (paper[~bwt]["mean"] > 0).all()
    with pytest.raises(ValueError, match="no table of split-mnist class_incremental; give one of: split-cifar10"):
        report.published("split-mnist", "class_incremental")


def test_rates_are_means_over_all_seeds_or_none():
    rows = [
        {"setting": setting, "method": method, "lr": lr, "seed": seed, "a_inf": value + 50 * (setting[0] == "t")}
        for setting in ("class_incremental", "task_incremental")
        for method, lr, values in [
            ("gem", 0.1, (60.0, float("nan"))),
            ("gem", 0.01, (10.0, 11.0)),
            ("er", 0.1, (50.0, 40.0)),
            ("er", 0.01, (44.0, 47.0)),
        ]
        for seed, value in enumerate(values)
    ]
    means = report.rates(pd.DataFrame(rows))
    assert list(means.index) == ["gem", "er"]
    assert means.loc["er"].to_dict() == {0.01: 45.5, 0.1: 45.0}
    assert means.loc["gem", 0.01] == 10.5
    assert means[0.1].isna().to_dict() == {"gem": True, "er": False}
    assert means.idxmax(axis=1).to_dict() == {"gem": 0.01, "er": 0.01}


@pytest.mark.parametrize("grid_name", ["tables-fashion-mnist"])
def test_the_rates_of_the_tables_are_the_best_of_the_learning_rates(grid_name):
    """On held-out training images, from seeds that no table uses."""
    tuning = report.stored(grid_name.replace("tables", "learning-rates"))
    rates = report.rates(tuning).idxmax(axis=1)
    asked = report.stored(grid_name)
    assert asked.groupby("method")["lr"].unique().map(list).to_dict() == {name: [lr] for name, lr in rates.items()}
    assert not set(tuning["seed"]) & set(asked["seed"])
