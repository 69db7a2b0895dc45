"""What notebooks 03 and 07 draw: scores and arms with their intervals, and curves with bands."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from metasp_lite.course.plots import BLUE, BROWN, GREEN, LINES, ORANGE
from metasp_lite.course.stage_plots import named_lines
from metasp_lite.doors import typed

Interval = tuple[float, float, float]  # mean, low end, high end


@typed
def forest(ax: Axes, rows: Mapping[str, Interval], *, ceilings: Mapping[str, float] | None = None) -> None:
    """Draw each of ``rows`` as a point with its interval, the first on top; ``ceilings`` are lines with their names.

    Names stand at the left; the line at 0 is what a score without any information has.

    Raises:
        ValueError: when there is no row.
    """
    if len(rows) == 0:
        raise ValueError("no rows; give at least one score with its mean and interval")
    places = np.arange(len(rows))[::-1]
    means, lows, highs = (np.array([row[k] for row in rows.values()]) for k in range(3))
    ax.axvline(0, color="0.6", linewidth=1, zorder=1)
    ax.hlines(places, lows, highs, color=BLUE, linewidth=2)
    ax.plot(means, places, "o", color=BLUE, markersize=6)
    ax.set_yticks(places, list(rows), fontsize=9)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    for count, (name, value) in enumerate((ceilings or {}).items()):
        ax.axvline(value, color=ORANGE, linestyle=("--", ":")[count % 2], linewidth=1.5, zorder=1)
        where = (value, 0.02 + 0.22 * count), (-3, 0), ("data", "axes fraction")
        ax.annotate(name, *where, "offset points", color=ORANGE, fontsize=8, rotation=90, ha="right", va="bottom")
    ax.grid(axis="y", visible=False)


@typed
def named_bands(
    ax: Axes, at: Sequence[float], bands: Mapping[str, Sequence[Interval]], *, shaded: Sequence[str] = ()
) -> None:
    """Draw means over ``at`` as lines with their names at the right end, and the intervals of those ``shaded``.

    ``bands`` has an interval for each place of ``at``.
    """
    named_lines(ax, pd.DataFrame({name: [row[0] for row in rows] for name, rows in bands.items()}, index=list(at)))
    for line in ax.get_lines():
        name = str(line.get_label())
        if name in shaded:
            ends = np.array(bands[name])
            ax.fill_between(list(at), ends[:, 1], ends[:, 2], color=line.get_color(), alpha=0.15, linewidth=0)


@typed
def detection(ax: Axes, found: Mapping[str, Sequence[float]], *, rate: float, title: str = "") -> None:
    """Draw which share of the wrong labels is found, over the share of examples inspected, both 0 to 1.

    Thin lines: what nobody can beat when the share ``rate`` is wrong, and what guessing finds.
    """
    ax.plot([0, rate, 1], [0, 1, 1], color="0.5", linewidth=1)
    ax.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":")
    ax.set_prop_cycle(LINES)
    for name, shares in found.items():
        ax.plot(np.linspace(0, 1, len(shares)), shares, label=name)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="share inspected", ylabel="share of wrong labels found", title=title)
    ax.legend(fontsize=8, loc="lower right")


@typed
def best_of_each_row(ax: Axes, accuracies: pd.DataFrame) -> None:
    """Draw accuracies in per cent, a row a method and a column a learning rate; a frame around the best of each row."""
    sns.heatmap(accuracies, ax=ax, annot=True, fmt=".1f", cmap="viridis", cbar=False)
    ax.grid(visible=False)
    for row, best in enumerate(np.nanargmax(accuracies.to_numpy(dtype=float), axis=1)):
        ax.add_patch(_frame(float(best), float(row)))
    ax.set(xlabel="learning rate", ylabel="")
    ax.tick_params(axis="y", rotation=0)


@typed
def beside_the_paper(ax: Axes, ours: Mapping[str, Interval], paper: Mapping[str, float]) -> None:
    """Draw our differences with their intervals, and the paper's of the same name as diamonds in the row below."""
    forest(ax, ours)
    names = list(ours)
    shown = [(value, len(names) - 1 - names.index(name) - 0.28) for name, value in paper.items() if name in names]
    if shown:
        ax.plot(*zip(*shown, strict=True), "D", color=ORANGE, markersize=6, label="the paper's", linestyle="none")
        ax.plot([], [], "o-", color=BLUE, label="ours, with its 95 % interval")
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)


@typed
def gain_against_dose(
    ax: Axes, doses: Mapping[float, Interval], controls: Mapping[str, Interval], detectable: float
) -> None:
    """Draw the gain at each dose, beside it the ``controls``, and ± the difference that could have been detected.

    Raises:
        ValueError: when there is no dose.
    """
    if len(doses) == 0:
        raise ValueError("no doses; give at least one with its mean and interval")
    ax.axhspan(-detectable, detectable, color="0.93", zorder=0)
    ax.axhline(0, color="0.5", linewidth=1)
    at, rows = list(doses), np.array(list(doses.values()))
    ax.errorbar(at, rows[:, 0], _arms(rows), color=BLUE, marker="o", linewidth=1.5, capsize=3)
    colours = (ORANGE, GREEN, BROWN, "0.3")
    for number, (name, row) in enumerate(controls.items()):
        place, colour = max(at) * (1.12 + 0.13 * number), colours[number % len(colours)]
        ax.errorbar([place], [row[0]], _arms(np.array([row])), color=colour, marker="s", capsize=3)
        ax.annotate(
            name,
            (place, row[1]),
            (0, -5),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            rotation=60,
            ha="right",
            va="top",
        )
    words: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "right", "va": "top"}
    ax.annotate("too small to be detected", (max(at), detectable), (0, -3), **words)
    ax.margins(x=0.08, y=0.15)
    ax.set_xticks(at, [f"{dose:g}" for dose in at])
    ax.set(xlabel="dose (0: plain weights)", ylabel="gain in $A_\\infty$, points")


@typed
def cost_against_accuracy(ax: Axes, costs: Mapping[str, float], accuracies: Mapping[str, Interval]) -> None:
    """Draw each method's accuracy with its interval over what its run costs, on a log scale.

    Names stand above and below in turn, so that those of neighbours do not meet.

    Raises:
        ValueError: when one of the two lacks a method of the other.
    """
    if odd := sorted(set(costs) ^ set(accuracies)):
        raise ValueError(f"{odd[0]} has a cost or an accuracy, not both; give both of each method")
    rows = np.array([accuracies[name] for name in costs])
    ax.errorbar(list(costs.values()), rows[:, 0], _arms(rows), fmt="o", color=BLUE, capsize=2)
    for rank, name in enumerate(sorted(costs, key=lambda each: costs[each])):
        end, shift, side = ((2, 4, "bottom"), (1, -4, "top"))[rank % 2]
        place = (costs[name], accuracies[name][end])
        words: dict[str, Any] = {"fontsize": 9, "rotation": 55, "va": side}
        ax.annotate(name, place, (0, shift), textcoords="offset points", ha=("left", "right")[rank % 2], **words)
    ax.set(xscale="log", xlabel="operations of a run, in runs of ER", ylabel="$A_\\infty$ (%)")
    ax.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(y=0.25)


@typed
def with_intervals(ax: Axes, bands: Mapping[float | None, Interval], *, color: str, marker: str, label: str) -> None:
    """Draw means with their intervals over a setting's values; at None, what does not depend on it, as a level line."""
    rows = np.array(list(bands.values()))
    if None in bands:
        ax.axhline(rows[0, 0], color=color, dashes=(4, 3), label=label)
        ax.axhspan(rows[0, 1], rows[0, 2], color=color, alpha=0.1, linewidth=0)
    else:
        at = np.array(list(bands), dtype=float)
        ax.errorbar(at, rows[:, 0], _arms(rows), color=color, marker=marker, capsize=3, label=label)


def _arms(rows: np.ndarray) -> np.ndarray:
    """Return how far intervals ``(n, 3)`` reach below and above their means, as Matplotlib takes them."""
    return np.stack([rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]])


def _frame(column: float, row: float) -> Rectangle:
    return Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, fill=False, edgecolor="white", linewidth=2)
