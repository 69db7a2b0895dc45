"""What the figures of notebooks 03 and 07 show is what they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from metasp_lite.course import uses_plots

ROWS = {"exact": (0.6, 0.5, 0.7), "identity": (0.2, -0.1, 0.3)}


def test_a_forest_has_each_mean_and_interval_at_its_name():
    _, ax = plt.subplots()
    uses_plots.forest(ax, ROWS, ceilings={"the ceiling": 0.9})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["exact", "identity"]
    (points,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert list(points.get_xdata()) == [0.6, 0.2]
    assert list(points.get_ydata()) == list(ax.get_yticks()) == [1, 0]  # the first on top
    (bars,) = ax.collections
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[0.5, 0.7], [-0.1, 0.3]]
    assert [list(line.get_xdata()) for line in ax.get_lines() if line is not points] == [[0, 0], [0.9, 0.9]]
    assert [text.get_text() for text in ax.texts] == ["the ceiling"]


def test_a_forest_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one score"):
        uses_plots.forest(plt.subplots()[1], {})


def test_curves_are_named_and_those_asked_for_have_bands():
    _, ax = plt.subplots()
    bands = {"a": [(0, -1, 1), (2, 1, 3)], "b": [(5, 4, 6), (6, 5, 7)]}
    uses_plots.named_bands(ax, [10, 30], bands, shaded=["a"])
    assert {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()} == {"a": [0, 2], "b": [5, 6]}
    assert [text.get_text() for text in ax.texts] == ["a", "b"]
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for at, low, high in ((10, -1, 1), (30, 1, 3)):
        heights = corners[corners[:, 0] == at, 1]
        assert (heights.min(), heights.max()) == (low, high)


def test_detection_runs_from_nothing_to_all_beside_the_best_and_a_guess():
    _, ax = plt.subplots()
    uses_plots.detection(ax, {"loss": [0, 0.8, 1]}, rate=0.1)
    best, guess, loss = ax.get_lines()
    assert np.array(best.get_xydata()).tolist() == [[0, 0], [0.1, 1], [1, 1]]
    assert np.array(guess.get_xydata()).tolist() == [[0, 0], [1, 1]]
    assert np.array(loss.get_xydata()).tolist() == [[0, 0], [0.5, 0.8], [1, 1]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss"]


# --- notebook 07 ------------------------------------------------------------------------------------------------------


METHODS = {"er": (-4.0, -5.0, -3.0), "joint": (9.0, 8.0, 10.5)}


def test_the_best_rate_of_each_method_has_a_frame():
    _, ax = plt.subplots()
    table = pd.DataFrame({0.01: [70.0, 60.0], 0.1: [65.0, 61.5], 0.3: [float("nan"), 1.0]}, index=["er", "gem"])
    uses_plots.best_of_each_row(ax, table)
    assert [text.get_text() for text in ax.texts] == [
        "70.0",
        "65.0",
        "60.0",
        "61.5",
        "1.0",
    ]  # er left the finite numbers at 0.3
    assert [(round(frame.get_x()), round(frame.get_y())) for frame in ax.patches] == [(0, 0), (1, 1)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["er", "gem"]


def test_the_papers_differences_stand_in_the_rows_of_ours():
    _, ax = plt.subplots()
    uses_plots.beside_the_paper(ax, METHODS, {"joint": 42.6, "mir": -6.5})
    (diamonds,) = [line for line in ax.get_lines() if line.get_marker() == "D"]
    assert list(diamonds.get_xdata()) == [42.6]  # what we have not is not shown
    assert [label.get_text() for label in ax.get_yticklabels()] == ["er", "joint"]
    assert abs(diamonds.get_ydata()[0] - 0) < 0.5  # the lowest row
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["the paper's", "ours, with its 95 % interval"]


def _drawn(container):
    (bars,) = container.lines[2]
    return list(container.lines[0].get_ydata()), [segment[:, 1].tolist() for segment in bars.get_segments()]


def test_gains_at_their_doses_with_controls_and_what_could_be_found():
    _, ax = plt.subplots()
    doses = {0.0: (0.0, 0.0, 0.0), 2.0: (0.5, -0.2, 1.2)}
    uses_plots.gain_against_dose(ax, doses, {"permuted": (-1.0, -2.0, 0.5)}, 0.8)
    curve, control = ax.containers
    assert list(curve.lines[0].get_xdata()) == [0.0, 2.0]
    for found, rows in ((_drawn(curve), list(doses.values())), (_drawn(control), [(-1.0, -2.0, 0.5)])):
        assert found[0] == [row[0] for row in rows]
        np.testing.assert_allclose(found[1], [row[1:] for row in rows], atol=1e-12)  # a difference taken back
    assert control.lines[0].get_xdata()[0] > 2
    (band,) = ax.patches
    assert (band.get_y(), band.get_height()) == (-0.8, 1.6)
    assert "permuted" in [text.get_text() for text in ax.texts]
    with pytest.raises(ValueError, match="at least one"):
        uses_plots.gain_against_dose(ax, {}, {}, 1.0)


def test_each_method_stands_at_its_cost_and_accuracy():
    _, ax = plt.subplots()
    uses_plots.cost_against_accuracy(ax, {"er": 1.0, "joint": 0.5}, METHODS)
    (points,) = ax.containers
    assert list(points.lines[0].get_xdata()) == [1.0, 0.5]
    assert _drawn(points)[0] == [-4.0, 9.0]
    assert {text.get_text() for text in ax.texts} == {"er", "joint"}
    with pytest.raises(ValueError, match="gem has a cost or an accuracy, not both"):
        uses_plots.cost_against_accuracy(ax, {"er": 1.0, "gem": 2.0, "joint": 0.5}, METHODS)


def test_a_setting_that_a_method_lacks_is_a_level_line():
    _, ax = plt.subplots()
    uses_plots.with_intervals(ax, {1.0: (5.0, 4.0, 6.5), 2.0: (7.0, 6.0, 8.0)}, color="C0", marker="o", label="a")
    uses_plots.with_intervals(ax, {None: (3.0, 2.0, 4.0)}, color="C1", marker="s", label="b")
    (curve,) = ax.containers
    assert list(curve.lines[0].get_xdata()) == [1.0, 2.0]
    np.testing.assert_allclose(_drawn(curve)[1], [[4.0, 6.5], [6.0, 8.0]], atol=1e-12)  # a difference taken back
    (level,) = [line for line in ax.get_lines() if line.get_label() == "b"]
    assert list(level.get_ydata()) == [3.0, 3.0]
    (band,) = ax.patches
    assert (band.get_y(), band.get_height()) == (2.0, 2.0)
