"""The studies of MetaSP's weights, rivals and selection: what they store is what training each run alone gives."""

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from metasp_lite.continual import presets, streams
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


FEW = {"per_class": 40, "epochs": 3, "late_epochs": 2}


def alone(method, folder, watch=None):
    overrides = {name: value for name, value in FEW.items() if name in presets.names(method)}
    run = presets.build("split-fashion-mnist", method, 7, profile="lite", overrides=overrides)
    return train(run, folder / method, watch=watch, progress_bar=False), streams.make(run.stream)


def rows_by_method():
    return {row["method"]: row for row in variants.rivals([7], FEW)}


def test_rivals_have_the_accuracies_that_training_each_alone_gives(tmp_path):
    rows = rows_by_method()
    assert set(rows) == {"joint", "fine-tune", "er", "er-late", "metasp", "metasp-rehsel"}
    for method, row in rows.items():
        result, _ = alone(method, tmp_path)
        for setting in ("class_incremental", "task_incremental"):
            for name, value in result[setting].items():
                assert row[f"{name}_{setting}"] == (value if value is None else pytest.approx(value, abs=1e-6))
        assert row["memory"] == (None if method in ("joint", "fine-tune") else 200)


def test_what_was_seen_inside_is_what_a_watcher_of_the_same_runs_finds(tmp_path):
    """The judge's mistakes and MetaSP's correlations, from the networks and scores of runs of their own."""
    rows, kept = rows_by_method(), {}

    def keep(learner, method):
        train_at = learner.task.train
        inputs = learner.stream.augmentation.normalise(learner.stream.images[train_at])
        with torch.no_grad():
            losses = F.cross_entropy(learner.model(inputs), learner.stream.labels[train_at], reduction="none")
        kept["learner"], kept["method"] = learner, method
        if hasattr(method, "influence"):
            kept[learner.task_number, learner.epoch] = method.influence[train_at].clone(), losses

    _, stream = alone("joint", tmp_path, keep)
    judge = kept["learner"].model
    wrong = judge(stream.augmentation.normalise(stream.images)).argmax(1) != stream.labels
    assert rows["joint"]["wrong_by_joint"] == pytest.approx(wrong.float().mean().item(), abs=1e-6)
    alone("metasp", tmp_path, keep)
    held = kept["method"].buffer
    wrong = judge(stream.augmentation.normalise(held.images)).argmax(1) != held.labels
    assert rows["metasp"]["wrong_by_joint"] == pytest.approx(wrong.float().mean().item(), abs=1e-6)
    for k in range(1, 5):
        (first, _), (second, losses), (third, _) = (kept[k, epoch] for epoch in (1, 2, 3))
        again = scipy.stats.spearmanr(second - first, third - second).statistic
        size = scipy.stats.spearmanr((third - second).abs(), losses).statistic
        assert rows["metasp"]["between_late_epochs"][k - 1] == pytest.approx(again, abs=1e-4)
        assert rows["metasp"]["size_and_loss"][k - 1] == pytest.approx(size, abs=1e-4)
    assert rows["fine-tune"]["wrong_by_joint"] is rows["er"]["size_and_loss"] is None
