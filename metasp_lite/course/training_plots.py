"""Figures of continual learning, for notebook 06: arrays and results in, axes out."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from metasp_lite.continual.accuracy import SETTINGS, Matrix, summarise
from metasp_lite.continual.streams import Stream
from metasp_lite.course import plots
from metasp_lite.doors import Count, typed


def tasks_of(stream: Stream, *, per_class: int = 4) -> Figure:
    """Show the first ``per_class`` training images of every class, one row of pictures a task."""
    picked, titles = [], []
    for number, task in enumerate(stream.tasks):
        for label in task.classes:
            members = task.train[stream.labels[task.train] == label][:per_class]
            picked += members.tolist()
            titles += [f"task {number + 1}: {stream.classes[label]}"] + [""] * (len(members) - 1)
    return plots.image_grid(stream.images[picked], titles, columns=per_class * len(stream.tasks[0].classes))


@typed
def matrix_heatmap(ax: Axes, matrix: Matrix, *, title: str = "") -> None:
    """Draw an accuracy matrix [t][k], in percent, with tasks from 1; raises as ``summarise``."""
    summarise(matrix)
    values = np.array([[np.nan if a is None else 100 * a for a in row] for row in matrix])
    names = [str(k + 1) for k in range(len(matrix))]
    sns.heatmap(
        values, ax=ax, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="viridis", cbar=False, square=True,
        xticklabels=names, yticklabels=names, mask=np.isnan(values),
    )  # fmt: skip
    ax.grid(visible=False)
    ax.set(xlabel="accuracy (%) on task", ylabel="after task", title=title)


@typed
def accuracy_after_each_task(axes: Sequence[Axes], results: Mapping[str, Mapping]) -> None:
    """Draw, for both settings, each run's mean accuracy on the tasks seen, after each task."""
    for ax, (setting, name) in zip(axes, SETTINGS.items(), strict=True):
        ax.set_prop_cycle(plots.MARKED_LINES)
        for label, result in results.items():
            matrix = result[f"accuracy_{setting}"]
            known = [t for t, row in enumerate(matrix) if row[0] is not None]
            means = [100 * np.mean(matrix[t][: t + 1]) for t in known]
            ax.plot([t + 1 for t in known], means, label=label)
        ax.set(xlabel="tasks learnt", ylim=(0, 102), title=name)
        ax.set_xticks(range(1, len(matrix) + 1))
        _name_ends(ax)
    axes[0].set_ylabel("mean accuracy on them (%)")


@typed
def curves(axes: Sequence[Axes], history: Sequence[tuple[float, list[float], list[float]]], epochs: Count) -> None:
    """Draw, for both settings, the accuracy on each task along the epochs: ``history`` of (epoch, row, row).

    Each task's name stands above the epochs in which it is trained.
    """
    scored, *rows = ([entry[0] for entry in history], [entry[1] for entry in history], [entry[2] for entry in history])
    for ax, accuracies, name in zip(axes, rows, SETTINGS.values(), strict=True):
        ax.set_prop_cycle(plots.LINES)
        tasks = len(accuracies[-1])
        for k in range(tasks):
            points = [(epoch, 100 * row[k]) for epoch, row in zip(scored, accuracies, strict=True) if len(row) > k]
            (line,) = ax.plot(*zip(*points, strict=True), label=f"task {k + 1}")
            words = f"task {k + 1}" if tasks <= 5 else f"{k + 1}"
            ax.text((k + 0.5) * epochs, 104, words, color=line.get_color(), ha="center", fontsize=10)
        ax.grid(visible=False, axis="x")
        for boundary in range(epochs, int(history[-1][0]), epochs):
            ax.axvline(boundary, color="0.3", linewidth=0.8, dashes=(4, 3))
        ax.set(xlabel="epoch (dashed: a new task begins)", xlim=(0, tasks * epochs), ylim=(-2, 102))
        ax.set_title(name, pad=18)
    axes[0].set_ylabel("accuracy (%)")


@typed
def corrections(ax: Axes, sizes: Mapping[str, Sequence[float]], stopped: Collection[str], *, top: float = 1e4) -> None:
    """Draw, for each variant of the weights, the largest |n·w − 1| of each weighted step, on a log scale up to ``top``.

    The lines of the runs that ``stopped`` end in a cross.
    """
    longest, styles = max(map(len, sizes.values())), plots.LINES()
    for name, values in sizes.items():
        style = next(styles)
        steps, shown = np.arange(1, len(values) + 1), np.minimum(values, top)
        ax.plot(steps, shown, color=style["color"], linewidth=1, label=name)
        end = name in stopped
        if end:
            ax.plot(steps[-1], shown[-1], "X", color=style["color"], markersize=9, clip_on=False, zorder=4)
        height = float(shown[-1]) if end else float(np.median(shown[-len(shown) // 5 :]))
        words = f"{name}: stops" if end else name
        aside = (8, -8) if end else (8, 0)
        ax.annotate(words, (steps[-1], height), aside, textcoords="offset points", color=style["color"], va="center")
    ax.set(yscale="log", ylim=(None, top), xlim=(0, 1.02 * longest))
    ax.set(xlabel="weighted step", ylabel="largest |n·w − 1| (a plain step: 0)")


@typed
def influences_of_step(ax: Axes, stability: Tensor, plasticity: Tensor, from_memory: Tensor) -> None:
    """Scatter the examples of a step by influence (n,) on the old and the new validation loss, on symmetric log scales.

    Near zero, up to the power of ten below the median size, the scales are linear.
    """
    x, y, old = (values.cpu().numpy() for values in (stability, plasticity, from_memory))
    for mask, colour, marker, name in (
        (old, plots.BLUE, "o", "from the memory"),
        (~old, plots.ORANGE, "^", "of the new task"),
    ):
        ax.scatter(x[mask], y[mask], s=30, color=colour, marker=marker, edgecolor="white", linewidth=0.4, label=name)
    for values, axis, set_scale, set_limits in (
        (x, ax.xaxis, ax.set_xscale, ax.set_xlim),
        (y, ax.yaxis, ax.set_yscale, ax.set_ylim),
    ):
        sizes = np.abs(values[values != 0])
        least, most = np.floor(np.log10(np.median(sizes))), np.ceil(np.log10(sizes.max()))
        set_scale("symlog", linthresh=10.0**least, linscale=0.5)
        set_limits(-(10.0 ** (most + 0.6)), 10.0 ** (most + 0.6))
        decades = 10.0 ** np.arange(most, least - 1, -2)
        axis.set_ticks([*-decades, 0, *decades])
        axis.set_minor_locator(NullLocator())
    ax.axhspan(ax.get_ylim()[0], 0, xmax=0.5, color="0.92", zorder=0)
    ax.axhline(0, color="0.5", linewidth=1)
    ax.axvline(0, color="0.5", linewidth=1)
    for across, name in ((0.02, "helps"), (0.98, "harms")):
        for up, other in ((0.02, "helps"), (0.98, "harms")):
            words = f"{name} both" if name == other else f"{name} the old, {other} the new"
            look: dict[str, Any] = {"transform": ax.transAxes, "fontsize": 9, "style": "italic", "color": "0.3"}
            side, height = "left" if across < 0.5 else "right", "bottom" if up < 0.5 else "top"
            ax.text(across, up, words, ha=side, va=height, **look)
    ax.set(xlabel="$I_S$, influence on the old classes", ylabel="$I_P$, on the new classes")
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


@typed
def sizes_of_influence(ax: Axes, influences: Mapping[str, Tensor]) -> None:
    """Draw the empirical distribution of |I*| of each group of examples, and its name at a height of its own.

    The smallest hundredth of each is outside.
    """
    styles, least = plots.LINES(), []
    for number, (name, values) in enumerate(influences.items(), start=1):
        style = next(styles)
        sizes = values.abs().cpu().numpy()
        ax.ecdf(sizes, **style, linewidth=1.8, label=name)
        least.append(float(np.quantile(sizes[sizes > 0], 0.01)))
        height = number / (len(influences) + 1)
        at = (float(np.quantile(sizes, height)), height)
        box = {"color": "white", "alpha": 0.8, "pad": 1}
        ax.annotate(name, at, (5, -4), textcoords="offset points", color=style["color"], va="top", bbox=box, fontsize=9)
    ax.set(xscale="log", xlabel="size of an example's influence, |I*|", ylabel="share of examples below it")
    ax.set_xlim(left=min(least))


@typed
def scores_again(axes: Sequence[Axes], before: Tensor, last: Tensor, losses: Tensor) -> None:
    """Left: I* (n,) of the same examples in two epochs, as ranks; right: size of the second over ``losses`` (n,)."""
    left, right = axes
    x, y = (scipy.stats.rankdata(values.cpu().numpy()) for values in (before, last))
    left.scatter(x, y, s=5, color=plots.BLUE, alpha=0.5, linewidth=0)
    left.set(xlabel="rank of I* in the last epoch but one", ylabel="rank in the last (low ranks help)")
    size, loss = last.abs().cpu().numpy(), losses.cpu().numpy()
    shown = (size > 0) & (loss > 0)
    right.scatter(loss[shown], size[shown], s=5, color=plots.ORANGE, alpha=0.5, linewidth=0)
    right.set(xscale="log", yscale="log", xlabel="loss of the example before that epoch", ylabel="|I*| in it")


def _name_ends(ax: Axes) -> None:
    """Write each line's name at its end, so far apart that one can be read beside the other."""
    low, high = ax.get_ylim()
    gap = 0.042 * (high - low)
    ends = {line: np.asarray(line.get_xydata())[-1] for line in ax.lines}
    lines = sorted(ends, key=lambda line: float(ends[line][1]))
    heights = plots.moved_apart(np.array([float(ends[line][1]) for line in lines]), gap)
    heights = np.minimum(heights, high - gap * np.arange(len(heights))[::-1])
    for line, height in zip(lines, heights, strict=True):
        at, color = (float(ends[line][0]), float(ends[line][1])), line.get_color()
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.6}
        place = (1.04, (height - low) / (high - low))
        ax.annotate(
            str(line.get_label()), at, place, textcoords="axes fraction", color=color, va="center", fontsize=9,
            arrowprops=arrow, annotation_clip=False,
        )  # fmt: skip
