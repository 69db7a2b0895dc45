"""Figures of an optimum on a plane: where an extra weight moves it, and where each example pulls it (notebook 01)."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metasp_lite.course.plots import BLUE, ORANGE
from metasp_lite.course.travel import OptimumTravel
from metasp_lite.doors import typed


def optimum_travel(travel: OptimumTravel, surface: tuple[np.ndarray, np.ndarray, np.ndarray], at: int) -> Figure:
    """Left: the optimum moving over the contours of J_ε for the ε at place ``at``; right: the validation loss along ε.

    ``surface`` is two grids of parameters and J_ε over them, as for ``Axes.contour``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    height = surface[2]  # levels that crowd towards the bottom show where the minimum is
    levels = height.min() + np.ptp(height) * np.linspace(0.03, 0.9, 12) ** 2
    left.contour(*surface, levels=levels, colors="0.75", linewidths=0.8)
    left.set(xlim=(surface[0][0], surface[0][-1]), ylim=(surface[1][0], surface[1][-1]))
    left.plot(*travel.optimum.T, color=BLUE, marker=".", label="retrained optimum")
    left.plot(*travel.optimum_first_order.T, color=ORANGE, linestyle="--", label="first-order prediction")
    zero = int(np.abs(travel.epsilon).argmin())
    left.plot(*travel.optimum[zero], "x", color="black", markersize=9, markeredgewidth=2, zorder=4, label="ε = 0")
    left.plot(*travel.optimum[at], "o", color=BLUE, markersize=9)
    left.plot(*travel.optimum_first_order[at], "s", color=ORANGE, markersize=7)
    left.set(xlabel="$θ_1$", ylabel="$θ_2$", title=f"contours of $J_ε$ at ε = {travel.epsilon[at]:+.3f}")
    left.legend(fontsize=8)
    right.plot(travel.epsilon, travel.validation, color=BLUE, marker=".", label="retrained")
    right.plot(travel.epsilon, travel.validation_first_order, color=ORANGE, linestyle="--", label="slope = influence")
    right.plot(0, travel.validation[zero], "x", color="black", markersize=9, markeredgewidth=2, zorder=4, label="ε = 0")
    right.plot(travel.epsilon[at], travel.validation[at], "o", color=BLUE, markersize=9)
    right.plot(travel.epsilon[at], travel.validation_first_order[at], "s", color=ORANGE, markersize=7)
    right.set(xlabel="ε, extra weight of the example", ylabel="validation loss (nats)")
    right.legend(fontsize=8)
    return figure


@typed
def pulls_on_optimum(
    ax: Axes,
    surface: tuple[Tensor, Tensor, Tensor],
    optimum: Tensor,
    pulls: Tensor,
    *,
    named: Mapping[int, str],
) -> None:
    """Draw where each example pulls the optimum (2,), as arrows (n, 2) over the contours of the validation loss.

    ``surface`` is two grids of parameters (S,) and the loss over them (S, S).  Arrows that end lower, to first order,
    are dashed; those of the examples ``named`` are thick and have their names.
    """
    first, second, height = (values.cpu().numpy() for values in surface)
    at, ends = (float(optimum[0]), float(optimum[1])), (optimum + pulls).cpu().numpy()
    drawn = ax.contour(first, second, 1000 * height, levels=14, colors="0.7", linewidths=0.8)
    ax.clabel(drawn, fmt="%.0f", fontsize=8)
    slopes = np.gradient(height, second, first)  # of rows, which are θ₂, then of columns
    middle = tuple(size // 2 for size in height.shape)
    lower = (ends - at) @ [slopes[1][middle], slopes[0][middle]] < 0
    for k, end in enumerate(ends):
        colour, style = (BLUE, "--") if lower[k] else (ORANGE, "-")
        look = {"color": colour, "linestyle": style, "linewidth": 3 if k in named else 1, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", end, at, arrowprops={"arrowstyle": "-|>"} | look)
        if k in named:
            aside, side = (10, "left") if end[0] > at[0] else (-10, "right")
            ax.annotate(named[k], end, (aside, 0), textcoords="offset points", ha=side)
    ax.plot(*at, "o", color="black", markersize=7)
    ax.set(xlim=first[[0, -1]], ylim=second[[0, -1]], aspect="equal", xlabel="$θ_1$", ylabel="$θ_2$")
    ax.plot([], [], color=BLUE, linestyle="--", label="helps")
    ax.plot([], [], color=ORANGE, label="hurts")
    ax.legend(fontsize=9, loc="upper right")
