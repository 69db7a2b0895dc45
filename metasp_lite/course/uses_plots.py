"""What notebook 03 draws: scores with their intervals, and curves with bands."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from metasp_lite.course.plots import BLUE, LINES, ORANGE
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
