"""Figures of continual learning, for notebook 04: arrays and results in, axes out."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metasp_lite.continual.accuracy import Matrix
from metasp_lite.continual.streams import Stream
from metasp_lite.course import plots
from metasp_lite.doors import Count, typed

SETTINGS = {"class_incremental": "class-incremental", "task_incremental": "task-incremental"}


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
    """Draw an accuracy matrix [t][k], in percent, with tasks from 1."""
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
    axes[0].set_ylabel("mean accuracy on them (%)")
    _legend(axes[0], len(results))


@typed
def curves(axes: Sequence[Axes], history: Sequence[tuple[float, list[float], list[float]]], epochs: Count) -> None:
    """Draw, for both settings, the accuracy on each task along the epochs: ``history`` of (epoch, row, row)."""
    scored, *rows = ([entry[0] for entry in history], [entry[1] for entry in history], [entry[2] for entry in history])
    for ax, accuracies, name in zip(axes, rows, SETTINGS.values(), strict=True):
        ax.set_prop_cycle(plots.LINES)
        for k in range(len(accuracies[-1])):
            points = [(epoch, 100 * row[k]) for epoch, row in zip(scored, accuracies, strict=True) if len(row) > k]
            ax.plot(*zip(*points, strict=True), label=f"task {k + 1}")
        ax.grid(visible=False, axis="x")
        for boundary in range(epochs, int(history[-1][0]), epochs):
            ax.axvline(boundary, color="0.3", linewidth=0.8, dashes=(4, 3))
        ax.set(xlabel="epoch (dashed: a new task begins)", ylim=(-2, 102), title=name)
    axes[0].set_ylabel("accuracy (%)")
    _legend(axes[0], len(rows[0][-1]))


@typed
def influence_of_stream(ax: Axes, mean_influence: Mapping[str, Tensor]) -> None:
    """Draw the distribution of mean I* of scored examples, one line for each group."""
    everything = np.concatenate([values.cpu().numpy() for values in mean_influence.values()])
    low, high = np.quantile(everything, [0.005, 0.995])
    bins, styles = np.linspace(low, high, 41).tolist(), plots.LINES()
    for name, values in mean_influence.items():
        ax.hist(values.cpu().numpy(), bins, histtype="step", **next(styles), linewidth=1.6, label=name)
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.set(xlabel="mean I* of an example (negative helps)", ylabel="examples", yscale="log")
    ax.legend(fontsize=8)


def _legend(ax: Axes, entries: int) -> None:
    """Name the series in the lower left, many of them in two columns."""
    ax.legend(fontsize=8, loc="lower left", ncols=1 if entries <= 6 else 2)
