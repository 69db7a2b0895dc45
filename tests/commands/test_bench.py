"""The command that measures costs: what it runs, prints and stores."""

import json

import pytest

from metasp_lite import networks, results, settings, studies
from metasp_lite.__main__ import main
from metasp_lite.commands import bench
from metasp_lite.studies import method_cost, step_cost, toy_cost, training_cost
from metasp_lite.studies.step_cost import STEPS, Case


def test_what_is_stored_is_a_list_with_an_object_for_every_step(monkeypatch, tmp_path, capsys):
    """In this process, where the peak of memory would mean nothing."""

    def in_this_process(function, *arguments):
        return 1.23 if function is step_cost.peak_extra_mib else function(*arguments)

    cases = (Case("tiny", n=4, v=2, repetitions=2), Case("tiny", n=8, v=4, repetitions=1, variants=tuple(STEPS)))
    monkeypatch.setattr(step_cost, "_NETWORKS", {"tiny": lambda: networks.lite_cnn(widths=(2, 2))})
    monkeypatch.setattr(step_cost, "CASES", cases)
    monkeypatch.setattr(step_cost, "in_fresh_process", in_this_process)
    monkeypatch.setattr(studies, "import_beforehand", lambda *modules: None)  # would stay for the tests after this one
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(settings, "PROJECT_DIR", tmp_path)
    assert main(["bench", "step"]) == 0
    stored = json.loads((tmp_path / "bench" / "step.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in stored] == ["sgd", "er", "metasp", "oracle", *STEPS]
    for row in stored:
        assert (row["network"], row["seed"], row["threads"]) == ("tiny", step_cost.SEED, 1)
        assert (row["n"], row["v"], row["repetitions"]) in [(4, 2, 2), (8, 4, 1)]
        assert row["peak_extra_mib"] == row["peak_extra_mib_ordinary_malloc"] == 1.2
        assert row["cpu_seconds"] >= row["cpu_seconds_min"] > 0
        assert row["wall_seconds"] > 0
        assert "commit" in row["obtained_with"]
        if row["variant"] == "er":
            assert row["counted_ratio_to_er"] == row["cpu_ratio_to_er"] == 1
    assert "oracle-shared" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused_before_anything_runs(capsys, monkeypatch):
    monkeypatch.setattr(toy_cost, "study", lambda seeds: pytest.fail("it ran"))
    assert main(["bench", "toy", "steps"]) == 1
    said = "metasp_lite: there is no benchmark 'steps'; choose from toy, step, train, methods, peers\n"
    assert capsys.readouterr().err == said
    assert main(["bench", "--seeds", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "run"),
    [([], ["toy 5", "step", "train", "methods"]), (["step"], ["step"]), (["toy", "--seeds", "2"], ["toy 2"])],
)
def test_one_command_runs_all_benchmarks_or_those_named(asked, run, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(studies, "import_beforehand", lambda *modules: None)  # would stay for the tests after this one
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(settings, "PROJECT_DIR", tmp_path)
    shown = dict.fromkeys([*bench._SHOWN["step"], *bench._SHOWN["train"], *bench._SHOWN["methods"]], 1)
    monkeypatch.setattr(toy_cost, "study", lambda seeds: ran.append(f"toy {seeds}") or {"runs": [{"seed": 7}]})
    monkeypatch.setattr(step_cost, "study", lambda: ran.append("step") or [shown])
    monkeypatch.setattr(training_cost, "study", lambda: ran.append("train") or [shown])
    monkeypatch.setattr(method_cost, "study", lambda: ran.append("methods") or [shown])
    assert main(["bench", *asked]) == 0
    assert ran == run
    assert {path.stem for path in (tmp_path / "bench").iterdir()} == {name.partition(" ")[0] for name in run}
