"""Figures of continual learning: ten tasks are ten curves, thirteen methods thirteen, each with a look of its own."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from metasp_lite.course import training_plots


def words(ax):
    return [text.get_text() for text in ax.texts]


def looks(lines):
    return {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}


def result(tasks, level=0.5):
    """Every accuracy is ``level``."""
    matrix = [[level] * tasks for _ in range(tasks)]
    return {"accuracy_class_incremental": matrix, "accuracy_task_incremental": matrix}


@pytest.mark.parametrize("count", [1, 6, 13])
def test_each_method_has_a_curve_of_its_own_in_both_settings(count):
    figure, axes = plt.subplots(1, 2)
    names = [f"method {k}" for k in range(count)]
    training_plots.accuracy_after_each_task(axes, {name: result(3, k / 20) for k, name in enumerate(names)})
    for ax in figure.axes:
        assert [line.get_label() for line in ax.lines] == names
        np.testing.assert_allclose([line.get_ydata() for line in ax.lines], 5 * np.tile(np.arange(count), (3, 1)).T)
        assert len(looks(ax.lines)) == count
        assert sorted(words(ax)) == sorted(names)
        heights = sorted(text.get_position()[1] for text in ax.texts)
        assert min(np.diff(heights), default=1) > 0.04  # of the axes: no name stands on another
        assert heights[-1] <= 1
        for text in ax.texts:
            (line,) = [line for line in ax.lines if line.get_label() == text.get_text()]
            assert text.get_color() == line.get_color()
            np.testing.assert_allclose(text.xy, line.get_xydata()[-1])
    assert [ax.get_title() for ax in figure.axes] == list(training_plots.SETTINGS.values())


def test_a_method_scored_only_at_the_end_has_one_dot_there():
    figure, axes = plt.subplots(1, 2)
    only = result(3)
    only["accuracy_class_incremental"] = [[None] * 3, [None] * 3, [0.2, 0.4, 0.6]]
    training_plots.accuracy_after_each_task(axes, {"gdumb": only})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[3, 40]])


def history(tasks, epochs):
    """Scores after each epoch: 0.1 k on task k, and 1 minus it; a new task comes every ``epochs``."""
    rows = []
    for epoch in range(1, tasks * epochs + 1):
        row = [0.1 * k for k in range((epoch - 1) // epochs + 1)]
        rows.append((epoch, row, [1 - accuracy for accuracy in row]))
    return rows


@pytest.mark.parametrize("tasks", [1, 6, 10])
def test_each_task_has_a_curve_of_its_own_from_its_first_epoch_on(tasks):
    figure, axes = plt.subplots(1, 2)
    training_plots.curves(axes, history(tasks, epochs=2), epochs=2)
    left, right = figure.axes
    for ax, height in ((left, lambda k: 10 * k), (right, lambda k: 100 - 10 * k)):
        curves, boundaries = ax.lines[:tasks], ax.lines[tasks:]
        assert len(boundaries) == tasks - 1
        assert len(looks(curves)) == tasks
        for k, line in enumerate(curves):
            assert list(line.get_xdata()) == list(range(2 * k + 1, 2 * tasks + 1))
            np.testing.assert_allclose(line.get_ydata(), height(k), atol=1e-12)  # rounding of a per cent
        named = [f"task {k + 1}" if tasks <= 5 else f"{k + 1}" for k in range(tasks)]
        assert words(ax) == named
        assert [text.get_position()[0] for text in ax.texts] == [2 * k + 1 for k in range(tasks)]
        assert [text.get_color() for text in ax.texts] == [line.get_color() for line in curves]


def test_curves_need_a_panel_for_each_setting():
    with pytest.raises(ValueError, match="zip"):
        training_plots.curves([plt.figure().subplots()], history(1, 1), epochs=1)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_each_group_of_influences_has_a_distribution_with_its_name_on_it(count):
    values = torch.linspace(-1, 1.013, 100) ** 3  # no two of one size
    groups = {f"task {k + 2}": values * 10**-k for k in range(count)}
    ax = plt.figure().subplots()
    training_plots.sizes_of_influence(ax, groups)
    assert len(looks(ax.lines)) == count
    for line, text, (name, given) in zip(ax.lines, ax.texts, groups.items(), strict=True):
        assert text.get_text() == line.get_label() == name
        x, y = line.get_data()
        below = [(given.abs().numpy() <= size).mean() for size in x[1:]]
        np.testing.assert_allclose(y[1:], below)
        share = (given.abs().numpy() < text.xy[0]).mean()
        assert abs(share - text.xy[1]) <= 0.01  # a step of 100


def test_each_variant_has_its_corrections_and_a_cross_where_it_stopped():
    sizes = {"wild": [3.0, 1e9], "calm": [0.1, 0.2, 0.1, 0.3, 0.1], "calmer": [0.01] * 5}
    ax = plt.figure().subplots()
    training_plots.corrections(ax, sizes, {"wild": "why"}, top=1e3)
    (wild, cross, calm, calmer) = ax.lines
    np.testing.assert_allclose(wild.get_xydata(), [[1, 3], [2, 1e3]])
    np.testing.assert_allclose(cross.get_xydata(), [[2, 1e3]])
    np.testing.assert_allclose(calm.get_ydata(), sizes["calm"])
    assert words(ax) == ["wild: stops", "calm", "calmer"]
    assert [text.get_color() for text in ax.texts] == [line.get_color() for line in (wild, calm, calmer)]


def test_the_examples_of_a_step_stand_in_the_quarter_that_says_what_they_do():
    stability = torch.tensor([-1e-3, 2e-2, -5e-6, 1e-4, 0.0])
    plasticity = torch.tensor([-1e-5, 3e-4, 2e-2, -1e-3, 1e-6])
    memory = torch.tensor([True, True, False, False, False])
    ax = plt.figure().subplots()
    training_plots.influences_of_step(ax, stability, plasticity, memory)
    drawn = np.concatenate([np.asarray(dots.get_offsets()) for dots in ax.collections])
    np.testing.assert_allclose(drawn, torch.stack([stability, plasticity], 1))
    assert [len(dots.get_offsets()) for dots in ax.collections] == [2, 3]
    quarters = {text.get_text(): text.get_position() for text in ax.texts}
    right, up = (
        {name: at[0] > 0.5 for name, at in quarters.items()},
        {name: at[1] > 0.5 for name, at in quarters.items()},
    )
    assert (right["helps both"], up["helps both"]) == (False, False)
    assert (right["harms both"], up["harms both"]) == (True, True)
    assert (right["helps the old, harms the new"], up["helps the old, harms the new"]) == (False, True)
    assert (right["harms the old, helps the new"], up["harms the old, helps the new"]) == (True, False)
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "symlog")
    assert ax.get_xlim()[1] == -ax.get_xlim()[0] > 2e-2
    assert {0.1, 0.001, 0.0, -0.001, -0.1} <= set(np.round(ax.get_xticks(), 12))


def test_scores_are_compared_by_rank_and_their_sizes_with_the_losses():
    before, last = torch.tensor([-3.0, 0.5, 2.0]), torch.tensor([10.0, -1.0, 0.0])
    figure, axes = plt.subplots(1, 2)
    training_plots.scores_again(axes, before, last, torch.tensor([0.1, 0.2, 0.3]))
    left, right = (np.asarray(ax.collections[0].get_offsets()) for ax in figure.axes)
    np.testing.assert_allclose(left, [[1, 3], [2, 1], [3, 2]])
    np.testing.assert_allclose(right, [[0.1, 10], [0.2, 1]], rtol=1e-6)  # a size of zero has no place on a log scale


def test_the_heat_map_writes_the_accuracies_that_there_are_in_per_cent():
    ax = plt.figure().subplots()
    training_plots.matrix_heatmap(ax, [[0.5, None, None], [0.25, 0.75, None], [0.0, 1.0, 0.126]], title="m")
    assert [text.get_text() for text in ax.texts] == ["50", "25", "75", "0", "100", "13"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3"]
    assert ax.get_title() == "m"


def test_every_class_of_a_stream_is_shown_by_its_first_images():
    labels = torch.tensor([0, 1, 2, 3]).repeat(5)
    stream = SimpleNamespace(
        tasks=[
            SimpleNamespace(classes=range(first, first + 2), train=((labels // 2) == first // 2).nonzero()[:, 0])
            for first in (0, 2)
        ],
        labels=labels,
        images=torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 2, 2),
        classes=("cat", "dog", "car", "bus"),
    )
    figure = training_plots.tasks_of(stream, per_class=3)
    shown = [int(ax.images[0].get_array()[0, 0, 0]) for ax in figure.axes]
    assert shown == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["task 1: cat", "task 1: dog", "task 2: car", "task 2: bus"]
