"""The look of all figures, and those that notebooks 01, 08, 09 or several of them draw: arrays in, axes out.

Colours are seaborn's colour-blind palette; a marker or a line style tells series apart where colour is not seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from metasp_lite.doors import Count, typed
from metasp_lite.influence.agreement import pearson

_PALETTE = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, PURPLE, BROWN = (_PALETTE[i] for i in (0, 1, 2, 4, 5))

# Styles for any number of series.  As 7, 4 and 9 have no common divisor, 28 lines go by before two look the same, and
# 252 where they have markers.
_COLOURS = [BLUE, ORANGE, GREEN, PURPLE, BROWN, "0.3", _PALETTE[9]]
_STYLES = ["-", "--", "-.", ":"]
_MARKERS = ["o", "^", "s", "D", "v", "x", "P", "*", "<"]
LINES = plt.cycler(color=_COLOURS * 4, linestyle=_STYLES * 7)
MARKED_LINES = plt.cycler(color=_COLOURS * 36, linestyle=_STYLES * 63, marker=_MARKERS * 28)


def use_style() -> None:
    """Set the look of all figures: seaborn's white grid, the colour-blind palette, one resolution everywhere."""
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True})


@typed
def image_grid(images: Tensor, titles: Sequence[str], *, columns: Count = 8, heading: str = "") -> Figure:
    """Show uint8 images (N, C, H, W), C of 1 or 3, in rows of ``columns``, each with its title.

    Raises:
        ValueError: when there are no images or the number of titles differs.
    """
    if len(images) == 0 or len(images) != len(titles):
        raise ValueError(
            f"{len(images)} images and {len(titles)} titles; give one title for each of at least one image"
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are {tuple(images.shape)}; give (N, C, H, W) with C of 1 or 3")
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.15 * columns, 1.45 * rows + 0.3 * bool(heading)), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat[: len(images)], images, titles, strict=True):
        ax.imshow(image.detach().permute(1, 2, 0).cpu().numpy().squeeze(), cmap="gray_r", vmin=0, vmax=255)
        ax.set_title(title, fontsize=8)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def arrays(**given: Tensor) -> list[np.ndarray]:
    """Return tensors of one shape as arrays, to be drawn against each other.

    Raises:
        ValueError: when the shapes differ, or there is nothing in them; for a NaN or an infinite number.
    """
    shapes = {name: tuple(values.shape) for name, values in given.items()}
    if len(set(shapes.values())) > 1 or any(values.numel() == 0 for values in given.values()):
        raise ValueError(f"shapes of {shapes}: give one for all, of at least one number")
    if odd := [name for name, values in given.items() if not values.isfinite().all()]:
        raise ValueError(f"{odd[0]} has a number that is NaN or infinite, which has no place in a figure")
    return [values.detach().cpu().numpy() for values in given.values()]


def two_classes(
    ax: Axes, inputs: Tensor, labels: Tensor, classes: Sequence[str], theta: Tensor, *, ringed: Sequence[int]
) -> None:
    """Scatter inputs (n, 2) by label, and draw the line θᵀx = 0 on which both classes are equally likely.

    The examples ``ringed``, close together, share a ring; an inset below it shows them apart, each with its number.
    """
    x, of, (first, second) = inputs.cpu().numpy(), labels.cpu().numpy(), theta.tolist()
    looks = list(zip(classes, (BLUE, ORANGE), "o^", strict=True))
    reach = np.abs(x).max() * 1.1
    _line(ax, first, second, reach, color="black", linewidth=1.5)
    for label, (name, colour, marker) in enumerate(looks):
        ax.scatter(
            x[of == label, 0],
            x[of == label, 1],
            c=colour,
            marker=marker,
            s=32,
            label=name,
            edgecolor="white",
            linewidth=0.5,
        )
    centre = x[list(ringed)].mean(axis=0)
    ax.scatter(centre[0], centre[1], s=170, facecolor="none", edgecolor="black", linewidth=1.2)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="first component", ylabel="second component")
    ax.text(-0.97 * reach * second / np.hypot(first, second) + 0.1, 0.9 * reach, "$θ^⊤x = 0$", ha="left")
    ax.legend(loc="lower left", fontsize=10)
    inset = ax.inset_axes((0.03, 0.79, 0.29, 0.18))
    for count, place in enumerate(ringed):
        name, colour, marker = looks[of[place]]
        inset.scatter(x[place, 0], x[place, 1], c=colour, marker=marker, s=60)
        text, below = f"{name.split()[-1].lower()} {place}", -18 if count % 2 else 9  # neighbours' names apart
        inset.annotate(text, x[place], (0, below), textcoords="offset points", ha="center", fontsize=9)
    across, up = np.abs(x[list(ringed)] - centre).max(axis=0) + 1e-9
    wide = max(across, up)
    reach = (-3 * wide, 3 * wide)
    inset.set(xlim=centre[0] + np.array(reach), ylim=centre[1] + np.array(reach), xticks=[], yticks=[])
    start = centre + np.array([-0.02, 0.12])
    ax.annotate("", start, (0.22, 0.79), "data", "axes fraction", {"arrowstyle": "-", "color": "0.3"})


def influence_map(
    ax: Axes, inputs: Tensor, labels: Tensor, classes: Sequence[str], influences: Tensor, direction: Tensor
) -> None:
    """Scatter inputs (n, 2), marker by label, area by |I|, filled where the example hurts (I > 0).

    The line qᵀx = 0 of ``direction`` q (2,) is where an influence changes its sign.
    """
    x, of, value = inputs.cpu().numpy(), labels.cpu().numpy(), influences.cpu().numpy()
    reach = np.abs(x).max() * 1.1
    _line(ax, float(direction[0]), float(direction[1]), reach, color="black", linestyle="--", linewidth=1.5)
    area = 20 + 380 * np.abs(value) / np.abs(value).max()
    for label, (name, marker) in enumerate(zip(classes, "o^", strict=True)):
        for hurts, colour in ((False, BLUE), (True, ORANGE)):
            some = (of == label) & ((value > 0) == hurts)
            face = colour if hurts else "none"
            ax.scatter(
                x[some, 0], x[some, 1], s=area[some], marker=marker, facecolor=face, edgecolor=colour, linewidth=1.4
            )
            ax.scatter([], [], s=60, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.4,
                       label=f"{name} that {'hurts' if hurts else 'helps'}")  # fmt: skip
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="first component", ylabel="second component")
    ax.legend(loc="upper left", fontsize=9)


def _line(ax: Axes, first: float, second: float, reach: float, **look: Any) -> None:
    """Draw the line first·x₁ + second·x₂ = 0 across a square of half width ``reach``."""
    ends = np.array([-1, 1]) * 2 * reach / np.hypot(first, second)
    ax.plot(-second * ends, first * ends, **look)


def moved_apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Return the ascending ``heights (n,)`` of names, raised where the one below is nearer than ``gap``."""
    apart = heights.copy()
    for k in range(1, len(apart)):
        apart[k] = max(apart[k], apart[k - 1] + gap)
    return apart


@typed
def tangents(
    ax: Axes, x: Tensor, values: Tensor, slopes: Mapping[str, Tensor], *, mark: tuple[float, str] | None = None
) -> None:
    """Draw ``values (n,)`` of a function at ``x (n,)``, around 0, and lines with the ``slopes`` through its value at 0.

    ``mark`` is a place on the x-axis and what it is.
    """
    across, heights = x.cpu().numpy(), values.cpu().numpy()
    start = np.interp(0, across, heights)
    ax.plot(across, heights, color="0.5", linewidth=5, alpha=0.6, label="exact")
    ax.set_prop_cycle(LINES)
    for name, slope in slopes.items():
        ax.plot(across, start + float(slope) * across, label=name)
    if mark:
        ax.axvline(mark[0], color="black", linestyle=":", label=mark[1])
    ax.plot(0, start, "o", color="black", markersize=5)
    ax.legend(fontsize=8)


@typed
def correlations(ax: Axes, table: pd.DataFrame, *, title: str = "", legend: bool = False) -> None:
    """Draw the correlations in ``table``, −1 to 1, as bars: a group for each row, a colour for each column.

    A ``legend`` names the columns in the order of the bars.

    Raises:
        ValueError: for more columns than the two that can be told apart.
    """
    if len(table.columns) > 2:
        raise ValueError(f"{len(table.columns)} columns; bars tell two apart: draw the others beside them")
    table.iloc[::-1, ::-1].plot.barh(ax=ax, color=[ORANGE, BLUE], width=0.75, legend=False)
    for bars in ax.containers[:1]:  # the second colour hatched, to be told apart in grey
        for bar in bars:
            bar.set_hatch("//")
    ax.axvline(0, color="black", linewidth=1)
    ax.set(xlim=(min(-0.15, table.to_numpy().min() - 0.05), 1), xlabel="Pearson's r", ylabel="", title=title)
    if legend:
        ax.legend(ax.containers[::-1], list(map(str, table.columns)), fontsize=8, loc="lower right")


@typed
def predicted_against_true(
    ax: Axes,
    predicted: Tensor,
    true: Tensor,
    *,
    title: str = "",
    truth: str = "retrained",
    loss: str = "the validation loss",
) -> None:
    """Scatter predicted against true changes (n,) of a ``loss``, with the diagonal of perfect predictions.

    ``truth`` says where the true ones come from.
    """
    x, y = arrays(predicted=predicted, true=true)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low)
    ax.plot([low - margin, high + margin], [low - margin, high + margin], color="black", linewidth=1, label="equal")
    ax.scatter(x, y, s=22, color=BLUE, edgecolor="white", linewidth=0.5, zorder=3)
    # one unit for both axes, a power of a thousandth, so that they read alike
    power = max(0, int(np.ceil(-np.log10(max(abs(low), abs(high))) / 3)))
    unit = {0: "nats", 1: "milli-nats", 2: "micro-nats"}.get(power, f"1e-{3 * power} nats")
    ticks = FuncFormatter(lambda value, _: f"{value * 1000**power:g}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ticks)
    ax.set(xlabel=f"predicted change of {loss} ({unit})", ylabel=f"true change, {truth} ({unit})")
    ax.set_title(title)
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(fontsize=8)


@typed
def damping_curves(
    ax: Axes, dampings: Tensor, damped: Tensor, undamped: Tensor, true: Tensor, eigenvalues: Tensor
) -> None:
    """Draw, over dampings δ (S,), size and correlation with the true change of damped influences (S, n)."""
    size = (damped.norm(dim=1) / undamped.norm()).cpu()
    correlation = [pearson(-row, true) for row in damped]
    across, last = dampings.cpu(), 0.62 * len(dampings)
    ax.plot(across, size, color=BLUE, marker="o", markersize=4)
    ax.plot(across, correlation, color=ORANGE, marker="^", markersize=4)
    place = int(last)
    ax.text(float(across[place]), float(size[place]) + 0.06, "size, relative to undamped", color=BLUE)
    ax.text(float(across[place]), correlation[place] - 0.09, "Pearson r with the truth", color="#9c6400")
    for s in eigenvalues.tolist():
        ax.axvline(s, color="0.5", linestyle=":")
    ax.set(xscale="log", ylim=(0, 1.05), ylabel="ratio, correlation")
    ax.set_xlabel("damping δ (dotted: the eigenvalues of H)")
