"""Figures of one MetaSP step: every arrow, path and example that goes in is to be seen."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from metasp_lite.course import step_plots

FROM_MEMORY = torch.tensor([True, True, False, False, False])
STABILITY, PLASTICITY = torch.tensor([-2.0, -1.0, 0.0, 1.0, 4.0]), torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5])


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_shortest_vector_stands_between_its_two_with_its_length_beside():
    two = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    left, right = step_plots.shortest_vector(*two, 0.5, names=("a", "b", "d"), axes=("x", "y")).axes
    named = {text.get_text(): np.sign(text.xy).tolist() for text in left.texts if text.get_text()}
    assert named == {"$a$": [1, 0], "$b$": [0, 1], "$d$": [-1, -1]}  # each at its own tip
    assert left.lines[-1].get_xydata().tolist() == [[1, 1]]
    assert "-2 and -2" in left.get_title()
    assert (left.get_xlabel(), left.get_ylabel()) == ("x", "y")
    assert left.get_aspect() == 1  # lengths and angles are to be seen
    assert right.lines[-1].get_xydata().tolist() == [[0.5, 2]]
    assert right.get_title() == r"$\|γ a + (1-γ) b\|^2$"
    assert [text.get_text() for text in right.texts] == ["γ* = 0.500"]


def objectives():
    return [lambda points, c=centre: ((points - c) ** 2).sum(axis=-1) for centre in (0.0, 1.0)]


def test_every_descent_is_drawn_over_the_contours_and_as_losses():
    paths = {name: [np.array([[3.0, k], [0.5, 0.5]]) for k in range(10)] for name in ("γ*", "half")}
    front = np.linspace([0.0, 0.0], [1.0, 1.0], 7)
    figure = step_plots.pareto_paths(objectives(), paths, front)
    left, right = figure.axes
    for ax in (left, right):  # the front; of each descent its path, its start and its end
        assert len(ax.lines) == 1 + 3 * 20
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Pareto-optimal", "γ*", "half"]
    assert right.get_aspect() == 1  # one rate of fall is a line of 45°
    assert len(left.collections) == 2  # contours
    assert [text.get_text() for text in left.texts] == ["minimum of $\\ell_1$", "minimum of $\\ell_2$"]


@pytest.mark.parametrize("count", [1, 3])
def test_descents_by_other_than_two_rules_are_refused(count):
    paths = {f"rule {k}": [np.zeros((2, 2))] for k in range(count)}
    with pytest.raises(ValueError, match="zip"):
        step_plots.pareto_paths(objectives(), paths, np.linspace([0.0, 0.0], [1.0, 1.0], 7))


def test_the_graph_of_a_step_has_each_derivative_beside_the_arrow_it_belongs_to():
    (ax,) = step_plots.step_graph().axes
    texts = {text.get_text(): text for text in ax.texts if text.get_text()}
    arrows = [(text.xyann, text.xy) for text in ax.texts if getattr(text, "arrow_patch", None)]
    place = {name: texts[f"${name}$"].get_position() for name in ("E", "\\theta", "\\theta'")}
    place |= {which: texts[f"$\\ell(V_{{{which}}},\\theta')$"].get_position() for which in ("old", "new")}
    paths = {"$-\\frac{a}{n}\\nabla L(\\theta)^\\top$": ("E", "\\theta'"), "the plain step": ("\\theta", "\\theta'")}
    paths |= {f"$\\nabla\\ell(V_{{{which}}},\\theta')$": ("\\theta'", which) for which in ("old", "new")}
    assert sorted(arrows) == sorted((place[start], place[end]) for start, end in paths.values())
    for label, (start, end) in paths.items():
        assert texts[label].xy == pytest.approx(np.add(place[start], place[end]) / 2)
    assert len(texts) == len(place) + len(paths)


def test_every_example_stands_at_its_two_influences_and_the_numbered_ones_are_named():
    _, ax = plt.subplots()
    step_plots.stability_plasticity(ax, STABILITY, PLASTICITY, FROM_MEMORY, [4, 0, 3])
    old, new = (points.get_offsets().tolist() for points in ax.collections)
    assert old + new == torch.stack([STABILITY, PLASTICITY], dim=1).tolist()
    assert len(old) == 2
    assert [text.get_text() for text in ax.texts] == ["4", "0", "3"]
    assert entries(ax) == ["from the memory", "of the new task"]
    assert ax.get_xlim() == pytest.approx((-4.6, 4.6))  # a seventh more than the largest
    assert "nats" in ax.get_xlabel()
    assert "nats" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("x", "sides"),
    [((-2.0, 2.0), ("right", "left")), ((1.0, 1.01), ("right", "left")), ((-1.0, -1.01), ("left", "right"))],
)
def test_a_number_stands_away_from_a_near_neighbour_and_else_from_the_middle(x, sides):
    """A text whose right end is at its example stands left of it."""
    _, ax = plt.subplots()
    step_plots.stability_plasticity(ax, torch.tensor(x), torch.tensor(x), torch.tensor([True, False]), [0, 1])
    assert tuple(text.get_ha() for text in ax.texts) == sides


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


def test_influences_by_class_are_written_into_their_cells_and_the_tasks_are_parted():
    table = pd.DataFrame([[-12.0, 3.4, 0.2], [-0.2, 20.0, 1.0]], index=["a", "b"], columns=["c", "d", "e"])
    _, ax = plt.subplots()
    step_plots.influence_by_class(ax, table, split=(1, 2))
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "-12", (1, 0): "3", (2, 0): "0", (0, 1): "0", (1, 1): "20", (2, 1): "1"}
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), table)
    assert image.get_clim() == (-20, 20)  # zero is white
    assert [label.get_text() for label in ax.get_xticklabels()] == ["c", "d", "e"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [line.get_xydata()[0].tolist() for line in ax.lines] == [[0, 0.5], [1.5, 0]]


def test_losses_along_a_correction_stand_beside_the_promise_and_the_variants():
    multiples = torch.tensor([0.0, 1.0, 2.0, 50.0])
    changes = {name: k * multiples**2 for k, name in enumerate(("old", "new", "test old", "test new"), start=1)}
    figure = step_plots.how_far(multiples, changes, -multiples, {"one": 1.0, "fifty": 50.001}, near=2)
    left, right = figure.axes
    drawn = [line.get_ydata() for line in left.lines[:5]]
    for y, change in zip(drawn, [*changes.values(), -multiples], strict=True):
        np.testing.assert_allclose(y, 1000 * change[:3])  # milli-nats, up to ``near``
    for line, change in zip(right.lines[:5], [*changes.values(), -multiples], strict=True):
        np.testing.assert_allclose(line.get_ydata(), change)
    names = [*changes, "promised"]
    assert [text.get_text() for text in left.texts] == [*names, "one"]  # fifty is beyond it
    assert [text.get_text() for text in right.texts] == [*changes, "one", "fifty"]
    assert right.get_xscale() == "log"


def test_a_correction_needs_all_four_losses():
    multiples = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="zip"):
        step_plots.how_far(multiples, {"old": multiples}, -multiples, {}, near=1)
