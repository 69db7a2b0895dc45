"""Figures of an optimum on a plane: every optimum and every pull is where it belongs."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from metasp_lite.course import optimum_plots
from metasp_lite.course.travel import OptimumTravel


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_travel_is_drawn_whole_on_both_sides():
    epsilon, path = np.linspace(-0.1, 0.1, 5), np.arange(10.0).reshape(5, 2)
    travel = OptimumTravel(epsilon, path, path + 1, np.arange(5.0), np.arange(5.0) + 1)
    grid = np.linspace(0, 10, 4)
    figure = optimum_plots.optimum_travel(travel, (grid, grid, np.add.outer(grid, grid) ** 2), 3)
    left, right = figure.axes
    assert entries(left) == ["retrained optimum", "first-order prediction", "ε = 0"]
    assert entries(right) == ["retrained", "slope = influence", "ε = 0"]
    assert [len(line.get_xdata()) for line in left.lines] == [5, 5, 1, 1, 1]
    assert [line.get_xydata()[0].tolist() for line in left.lines[2:]] == [[4, 5], [6, 7], [7, 8]]  # at 0, at ε, twice
    assert len(left.collections) == 1  # the contours
    assert "+0.050" in left.get_title()


def test_every_pull_is_an_arrow_from_the_optimum_and_those_that_end_lower_look_so():
    axis = torch.linspace(-1.0, 1.0, 21)
    surface = 2 + axis, 5 + axis, (axis[None, :] - 2 * axis[:, None])  # the loss falls to the left and upwards
    pulls = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    _, ax = plt.subplots()
    optimum_plots.pulls_on_optimum(ax, surface, torch.tensor([2.0, 5.0]), pulls, named={1: "left", 3: "down"})
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert [text.xyann for text in arrows] == [(2, 5)] * 4
    assert [tuple(text.xy) for text in arrows] == [(2.5, 5), (1.5, 5), (2, 5.5), (2, 4.5)]
    styles = [text.arrow_patch.get_linestyle() for text in arrows]
    assert styles == ["-", "--", "--", "-"]
    assert [text.arrow_patch.get_linewidth() for text in arrows] == [1, 3, 1, 3]
    names = {text.get_text(): tuple(text.xy) for text in ax.texts if text.get_text() in ("left", "down")}
    assert names == {"left": (1.5, 5), "down": (2, 4.5)}
    assert entries(ax) == ["helps", "hurts"]
