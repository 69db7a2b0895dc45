"""Figures of continual learning: ten tasks are ten curves, thirteen methods thirteen, each with a look of its own."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from metasp_lite.course import training_plots


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


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
    assert [ax.get_title() for ax in figure.axes] == list(training_plots.SETTINGS.values())
    assert entries(figure.axes[0]) == names


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
    assert entries(left) == [f"task {k + 1}" for k in range(tasks)]


def test_curves_need_a_panel_for_each_setting():
    with pytest.raises(ValueError, match="zip"):
        training_plots.curves([plt.figure().subplots()], history(1, 1), epochs=1)


@pytest.mark.parametrize("count", [1, 9, 28])
def test_each_group_of_influences_has_an_outline_of_its_own(count):
    values = torch.linspace(-1, 1, 100)
    ax = plt.figure().subplots()
    training_plots.influence_of_stream(ax, {f"task {k + 2}": values for k in range(count)})
    assert entries(ax) == [f"task {k + 2}" for k in range(count)]
    outlines = [(patch.get_edgecolor(), patch.get_linestyle()) for patch in ax.patches]
    assert len(set(outlines)) == len(outlines) == count


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
