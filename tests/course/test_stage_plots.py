"""The figures of the two-stage notebooks: what they draw."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from metasp_lite.course import stage_plots


def test_each_line_has_its_own_look_and_its_name_at_its_end():
    table = pd.DataFrame({f"seed {k}": [1.0, 2.0, 3.0 + k] for k in range(5)}, index=[100, 200, 1000])
    _, ax = plt.subplots()
    stage_plots.named_lines(ax, table)
    assert [line.get_ydata().tolist() for line in ax.lines] == table.T.to_numpy().tolist()
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 5
    assert len({line.get_marker() for line in ax.lines}) == 5
    named = {text.get_text(): (text.xy[1], text.get_color()) for text in ax.texts}
    assert named == {line.get_label(): (line.get_ydata()[-1], line.get_color()) for line in ax.lines}
    assert min(text.xy[0] for text in ax.texts) > 1  # outside the frame


def test_names_of_lines_that_end_together_are_moved_apart():
    table = pd.DataFrame({"a": [0.0, 1.0], "b": [0.0, 1.0], "c": [10.0, 1.01]})
    _, ax = plt.subplots()
    stage_plots.named_lines(ax, table)
    heights = sorted(text.xy[1] for text in ax.texts)
    assert heights[0] == 1.0
    assert np.diff(heights).min() > 0.5  # of a range of 10


def test_a_distribution_is_drawn_from_its_lowest_to_its_highest_and_seen_around_zero():
    wide, narrow = np.linspace(-4, 6, 101), np.linspace(-1, 1, 101)
    _, ax = plt.subplots()
    stage_plots.distributions(ax, {"wide": wide.tolist(), "narrow": narrow.tolist()}, title="both")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["wide", "narrow"]
    for line, values in zip(ax.lines, (wide, narrow), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), values)
        np.testing.assert_array_equal(line.get_ydata(), range(101))
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    np.testing.assert_allclose(ax.get_xlim(), [-5.8, 5.8], rtol=1e-12)  # the 98th percentile of the wide one
