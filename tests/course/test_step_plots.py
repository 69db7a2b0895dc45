"""Figures of one MetaSP step: every arrow, path and example that goes in is to be seen."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from metasp_lite.course import step_plots

FROM_MEMORY = torch.tensor([True, True, False, False, False])
STABILITY, PLASTICITY = torch.tensor([-2.0, -1.0, 0.0, 1.0, 4.0]), torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5])


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_shortest_vector_stands_between_its_two_with_its_length_beside():
    figure = step_plots.shortest_vector(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 0.5, names=("a", "b", "d"))
    left, right = figure.axes
    assert len(entries(left)) == 5
    assert [text.get_text() for text in left.texts if text.get_text()] == ["$a$", "$b$", "$d$"]
    assert left.lines[-1].get_xydata().tolist() == [[1, 1]]
    assert "-2.000 and -2.000" in left.get_title()
    assert right.lines[-1].get_xydata().tolist() == [[0.5, 2]]
    assert entries(right) == [r"$\|γ a + (1-γ) b\|^2$", "γ* = 0.500"]


def objectives():
    return [lambda points, c=centre: ((points - c) ** 2).sum(axis=-1) for centre in (0.0, 1.0)]


def test_every_descent_is_drawn_over_the_contours_and_as_losses():
    paths = {name: [np.array([[3.0, k], [0.5, 0.5]]) for k in range(10)] for name in ("γ*", "half")}
    front = np.linspace([0.0, 0.0], [1.0, 1.0], 7)
    left, right = step_plots.pareto_paths(objectives(), paths, front).axes
    for ax in (left, right):  # the front; of each descent its path, its start and its end
        assert len(ax.lines) == 1 + 3 * 20
        assert entries(ax)[1:] == ["γ*", "half"]
    assert len(left.collections) == 2  # contours
    assert [text.get_text() for text in left.texts] == ["minimum of $f_1$", "minimum of $f_2$"]


@pytest.mark.parametrize("count", [1, 3])
def test_descents_by_other_than_two_rules_are_refused(count):
    paths = {f"rule {k}": [np.zeros((2, 2))] for k in range(count)}
    with pytest.raises(ValueError, match="zip"):
        step_plots.pareto_paths(objectives(), paths, np.linspace([0.0, 0.0], [1.0, 1.0], 7))


def test_every_example_stands_at_its_two_influences_and_the_numbered_ones_are_named():
    _, ax = plt.subplots()
    step_plots.stability_plasticity(ax, STABILITY, PLASTICITY, FROM_MEMORY, [4, 0, 3])
    old, new = (points.get_offsets().tolist() for points in ax.collections)
    assert old + new == torch.stack([STABILITY, PLASTICITY], dim=1).tolist()
    assert len(old) == 2
    assert [text.get_text() for text in ax.texts] == ["4", "0", "3"]
    assert entries(ax) == ["from the memory", "of the new task"]
    assert ax.get_xlim() == pytest.approx((-4.6, 4.6))  # a seventh more than the largest


def test_a_reach_cuts_the_picture_and_one_number_alone_has_no_neighbour():
    _, ax = plt.subplots()
    step_plots.stability_plasticity(ax, STABILITY, PLASTICITY, FROM_MEMORY, [1], reach=1.5)
    assert ax.get_xlim() == ax.get_ylim() == (-1.5, 1.5)
    assert [text.get_text() for text in ax.texts] == ["1"]


def test_weights_colour_every_example_and_the_line_is_where_the_fused_influence_is_zero():
    _, ax = plt.subplots()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
    step_plots.weights_over_influences(ax, STABILITY, PLASTICITY, torch.tensor(0.25), weights, FROM_MEMORY)
    coloured = np.concatenate([points.get_array() for points in ax.collections])
    np.testing.assert_allclose(coloured, 5 * weights, rtol=1e-6)  # float32
    assert entries(ax) == ["from the memory", "of the new task", "$I^*$ = 0"]
    through = np.array(ax.lines[0].get_xy2())
    assert 0.25 * through[0] + 0.75 * through[1] == pytest.approx(0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_variant_of_the_weights_has_a_histogram_of_all_examples(count):
    figure, axes = plt.subplots(1, count, squeeze=False)
    weights = {f"variant {k}": torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2 + k]) for k in range(count)}
    step_plots.weights_of_variants(axes[0], weights, FROM_MEMORY)
    for ax, name in zip(figure.axes, weights, strict=True):
        assert ax.get_title().startswith(f"{name}: mean")
        old, both = (sum(bar.get_height() for bar in bars) for bars in ax.containers)
        assert (old, both) == (2, 3)  # stacked: what each adds


def test_a_variant_without_a_panel_is_refused():
    _, axes = plt.subplots(1, 2)
    weights = {name: torch.full((5,), 0.2) + torch.arange(5) / 100 for name in "abc"}
    with pytest.raises(ValueError, match="zip"):
        step_plots.weights_of_variants(axes, weights, FROM_MEMORY)
