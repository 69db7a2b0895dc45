"""The speed of training: timed beside a bare loop."""

from metasp_lite.studies import training_cost


def test_training_steps_are_timed_beside_a_bare_loop():
    rows = {row["variant"]: row for row in training_cost.measure("lite-cnn", 2)}
    assert set(rows) == {"bare", "augmentation", "er", "metasp"}
    assert rows["bare"]["ratio_to_bare"] == rows["er"]["share_of_er_step"] == 1
    assert rows["metasp"]["steps_per_second"] < rows["er"]["steps_per_second"]
    assert rows["augmentation"]["share_of_er_step"] < 0.5  # a guard against per-image work; the goal is 0.02
