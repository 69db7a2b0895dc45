"""The study of the weights' variants: what it stores is what training each run alone gives."""

import pytest

from metasp_lite.continual import presets
from metasp_lite.continual.training import train
from metasp_lite.studies import variants

VARIANTS = ("official", "relative", "mixed", "printed")


def test_the_study_says_of_each_run_what_training_it_alone_gives(tmp_path):
    few = {"per_class": 40, "epochs": 2, "late_epochs": 1}
    rows = variants.study([7, 8], few)
    assert [(row["method"], row["variant"], row["lr"], row["seed"]) for row in rows] == [
        (method, variant, rate, seed)
        for method, variant in (("er-late", None), *(("metasp", v) for v in VARIANTS))
        for rate in (0.1, 0.03)
        for seed in (7, 8)
    ]
    for number, row in enumerate(rows):
        overrides = {**few, "lr": row["lr"], **({"variant": row["variant"]} if row["variant"] else {})}
        chosen = {"profile": row["profile"], "memory": row["memory"], "overrides": overrides}
        run = presets.build(row["stream"], row["method"], row["seed"], **chosen)
        if not row["finished"]:  # the weights have no bound, or the first of them could not have stopped
            assert row["variant"] in ("printed", "mixed")
            with pytest.raises(FloatingPointError):
                train(run, tmp_path / str(number))
            continue
        alone = train(run, tmp_path / str(number))["class_incremental"]["a_inf"]
        assert row["error"] is None
        assert row["a_inf_class_incremental"] == pytest.approx(alone, abs=1e-6)  # rounded to six places


def test_the_study_keeps_what_stopped_a_run():
    for row in variants.study([7], {"per_class": 40, "epochs": 2, "late_epochs": 1, "lr": 1e30}):
        assert (row["finished"], row["a_inf_class_incremental"]) == (False, None)
        assert "task 1, epoch 1" in row["error"]
