"""Figures of notebooks 08 and 09 alone: distributions of influences, and lines with their names."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from metasp_lite.course.plots import LINES, MARKED_LINES, moved_apart
from metasp_lite.doors import typed


@typed
def named_lines(ax: Axes, table: pd.DataFrame) -> None:
    """Draw each column of ``table`` over its index: a line with markers, and at its right end its name.

    Names that would lie on each other are moved apart.
    """
    ends = []
    for (name, line), style in zip(table.items(), list(MARKED_LINES)[: len(table.columns)], strict=True):
        ax.plot(table.index, line, label=str(name), **style)
        ends.append((float(line.iloc[-1]), str(name), style["color"]))
    ends.sort()
    heights = moved_apart(np.array([end for end, _, _ in ends]), 0.06 * float(np.ptp(table.to_numpy())))
    for (_, name, colour), height in zip(ends, heights, strict=True):
        ax.annotate(  # right of the frame
            name,
            (1.01, height),
            xycoords=("axes fraction", "data"),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


@typed
def distributions(ax: Axes, percentiles: Mapping[str, Sequence[float]], *, title: str = "") -> None:
    """Draw distributions of influences: what share of each lies below a number; ``percentiles`` are its 0 to 100 %.

    The axis reaches as far as the middle 96 % of the widest.
    """
    ax.set_prop_cycle(LINES)
    for name, values in percentiles.items():
        ax.plot(values, np.linspace(0, 100, len(values)), label=name)
    reach = max(abs(values[place]) for values in percentiles.values() for place in (2, -3))
    ax.set(xlim=(-reach, reach), ylim=(0, 100), xlabel="influence", ylabel="share of the scores below, %", title=title)
    ax.legend(fontsize=9, loc="upper left")
