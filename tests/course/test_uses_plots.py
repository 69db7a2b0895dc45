"""What the figures of notebook 03 show is what they were given."""

import matplotlib.pyplot as plt
import numpy as np
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
