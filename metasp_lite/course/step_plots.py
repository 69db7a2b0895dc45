"""Figures of a step that serves two losses, for notebooks 04, 05 and 06: arrays in, axes out."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metasp_lite.course.plots import BLUE, GREEN, ORANGE, PURPLE, arrays
from metasp_lite.doors import typed


@typed
def shortest_vector(
    first: np.ndarray,
    second: np.ndarray,
    gamma: float,
    *,
    reach: float = 2.0,
    names: tuple[str, str, str] = ("g_1", "g_2", "d^*"),
    axes: tuple[str, str] = ("first component", "second component"),
) -> Figure:
    """Left: two vectors (2,) and the point γ g₁ + (1−γ) g₂ of the segment between them; right: its length along γ.

    The axes go from −reach to reach and are called ``axes``; ``names`` are those of g₁, of g₂ and of the negated point.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.9))
    point = gamma * first + (1 - gamma) * second
    g, h, down = names
    for vector, colour, name in ((first, BLUE, g), (second, ORANGE, h), (-point, GREEN, down)):
        left.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
        tip = vector + 0.13 * reach * vector / max(np.hypot(*vector), 1e-9)
        left.annotate(f"${name}$", tip, ha="center", va="center", color=colour, fontsize=12)
    left.plot(*np.stack([first, second]).T, color="0.4", linestyle="--", linewidth=1)
    left.plot(*np.stack([np.zeros(2), point]).T, color=GREEN, linestyle=":", linewidth=2)
    left.plot(*point, "o", color=GREEN, markersize=8)
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=axes[0], ylabel=axes[1])
    left.set_title(f"slopes along ${down}$: {-first @ point:.3g} and {-second @ point:.3g}", fontsize=10)
    along = np.linspace(-0.5, 1.5, 101)
    points = along[:, None] * first + (1 - along[:, None]) * second
    right.axvspan(0, 1, color="0.93")
    right.plot(along, (points**2).sum(axis=1), color="0.4", linestyle="--")
    right.plot(gamma, point @ point, "o", color=GREEN, markersize=8)
    high = right.get_ylim()[1]
    right.annotate(f"γ* = {gamma:.3f}", (gamma, point @ point + 0.07 * high), ha="center", color=GREEN, fontsize=11)
    right.set(xlabel="γ (allowed: shaded)", ylabel="squared length", ylim=(0, high), xticks=np.linspace(-0.5, 1.5, 5))
    right.set_title(f"$\\|γ {g} + (1-γ) {h}\\|^2$", fontsize=11)
    return figure


@typed
def pareto_paths(
    objectives: Sequence[Callable[[np.ndarray], np.ndarray]],
    paths: Mapping[str, Sequence[np.ndarray]],
    front: np.ndarray,
) -> Figure:
    """Draw descents for two ``objectives`` of points (…, 2): over their contours (left) and as pairs of values (right).

    ``paths`` maps a rule to its paths (S, 2) from several starts; ``front`` (F, 2) are the Pareto-optimal points.  On
    the right both axes have one scale, so that two losses that fall at the same rate make a line of 45°.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.4), width_ratios=(1, 1.1))
    everything = np.concatenate([front, *(path for many in paths.values() for path in many)])
    low, high = everything.min(axis=0) - 0.4, everything.max(axis=0) + 0.4
    axes = [np.linspace(a, b, 81) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), axis=-1)
    for objective, colour in zip(objectives, (BLUE, ORANGE), strict=True):
        values = objective(grid)
        levels = values.max() * np.linspace(0.05, 0.9, 8) ** 2
        left.contour(*axes, values, levels=levels, colors=colour, linewidths=0.6, alpha=0.6)
    left.plot(*front.T, color="black", linewidth=3, label="Pareto-optimal")
    for end, name, aside in (
        (front[-1], "minimum of $\\ell_1$", (-12, 0)),
        (front[0], "minimum of $\\ell_2$", (0, 14)),
    ):
        place = {"xytext": aside, "textcoords": "offset points", "ha": "right" if aside[0] else "center"}
        left.annotate(name, end, **place, fontsize=9, va="center", bbox={"color": "white", "pad": 1})
    right.plot(*(objective(front) for objective in objectives), color="black", linewidth=3)
    for (name, many), colour, style in zip(paths.items(), (GREEN, PURPLE), ("-", "--"), strict=True):
        for k, path in enumerate(many):
            label = name if k == 0 else None
            losses = np.stack([objective(path) for objective in objectives])
            for ax, line in ((left, path.T), (right, losses)):
                ax.plot(*line, color=colour, linestyle=style, linewidth=1.8, label=label)
                ax.plot(*line[:, 0], "o", color="0.3", markersize=6)
                ax.plot(*line[:, -1], "s", color=colour, markersize=6)
    left.set(xlabel="$θ_1$", ylabel="$θ_2$")
    left.set_title("contours of $\\ell_1$ (blue) and $\\ell_2$ (orange)", fontsize=10)
    right.set(xlabel="$\\ell_1$", ylabel="$\\ell_2$", aspect="equal")
    right.set_title("the two losses; circles: starts, squares: ends", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
    return figure


def step_graph() -> Figure:
    """Draw what depends on what in one weighted step: θ and E make θ′, and θ′ both validation losses.

    The thick arrows are the paths of the two influences; beside each stands its derivative.
    """
    figure, ax = plt.subplots(figsize=(8.5, 3.0))
    theta, moved, extra = (0.05, 0.2), (0.5, 0.5), (0.05, 0.8)
    old, new = (0.9, 0.8), (0.9, 0.2)
    names = {theta: "$\\theta$", extra: "$E$", moved: "$\\theta'$"}
    names |= {old: "$\\ell(V_{old},\\theta')$", new: "$\\ell(V_{new},\\theta')$"}
    step = "$-\\frac{a}{n}\\nabla L(\\theta)^\\top$"
    edges = [(theta, moved, "0.5", "the plain step"), (extra, moved, "black", step)]
    edges += [
        (moved, old, BLUE, "$\\nabla\\ell(V_{old},\\theta')$"),
        (moved, new, ORANGE, "$\\nabla\\ell(V_{new},\\theta')$"),
    ]
    for start, end, colour, label in edges:
        look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1 if colour == "0.5" else 3}
        ax.annotate("", end, start, arrowprops=look | {"shrinkA": 22, "shrinkB": 46 if end[0] > 0.8 else 22})
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        above = (end[1] > start[1]) == (start is moved)  # on the outer side
        ax.annotate(
            label, middle, (0, 20 if above else -20), textcoords="offset points", ha="center", va="center", fontsize=13
        )
    for place, name in names.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "0.3"}
        ax.text(*place, name, ha="center", va="center", fontsize=13, bbox=box)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return figure


@typed
def stability_plasticity(
    ax: Axes,
    stability: Tensor,
    plasticity: Tensor,
    from_memory: Tensor,
    numbered: Sequence[int] = (),
    *,
    reach: float | None = None,
) -> None:
    """Scatter examples by influence (n,) on the old and the new validation loss; ``numbered`` get their index.

    Influences are in nats for one plain weight 1/n more, as ``metasp_gradient`` returns them.
    ``reach``: the largest influence in the picture; all are where it is None.
    """
    x, y, old = arrays(stability=stability, plasticity=plasticity, from_memory=from_memory)
    if old.dtype != bool:
        raise ValueError(f"from_memory is {from_memory.dtype}; give True or False for each example")
    wide, high = (reach or 1.15 * np.abs(values).max() for values in (x, y))
    ax.add_patch(plt.Rectangle((-wide, -high), wide, high, color="0.92", zorder=0))
    ax.axhline(0, color="0.5", linewidth=1)
    ax.axvline(0, color="0.5", linewidth=1)
    for mask, colour, marker, name in ((old, BLUE, "o", "from the memory"), (~old, ORANGE, "^", "of the new task")):
        ax.scatter(x[mask], y[mask], s=26, color=colour, marker=marker, edgecolor="white", linewidth=0.4, label=name)
    for i in numbered:  # on the side away from a near neighbour, so that both stay readable, else from the middle
        away = {j: float(np.hypot((x[i] - x[j]) / wide, (y[i] - y[j]) / high)) for j in numbered if j != i}
        nearest = min(away, key=away.__getitem__, default=i)
        other = x[nearest] if away.get(nearest, 1) < 0.1 else 0
        aside, alignment = ((6, -3), "left") if x[i] > other else ((-6, -3), "right")
        here = float(x[i]), float(y[i])
        offset = "offset points"
        ax.annotate(str(i), here, xytext=aside, textcoords=offset, ha=alignment, annotation_clip=True, fontsize=9)
    ax.set(xlim=(-wide, wide), ylim=(-high, high))
    ax.locator_params(axis="x", nbins=5)  # more would touch each other in half a page's width
    ax.set_xlabel("$I_S$, on the old classes (nats; left helps)")
    ax.set_ylabel("$I_P$, on the new classes (nats; below helps)")
    ax.legend(fontsize=9, loc="lower left")


@typed
def weights_over_influences(
    ax: Axes, stability: Tensor, plasticity: Tensor, gamma: Tensor, weights: Tensor, from_memory: Tensor
) -> None:
    """Colour the examples of ``stability_plasticity`` by n·w (n,), and draw the line γ* I_S + (1−γ*) I_P = 0."""
    x, y, relative, old = (
        values.cpu().numpy() for values in (stability, plasticity, len(weights) * weights, from_memory)
    )
    share = float(gamma)
    most = np.abs(relative - 1).max()
    for mask, marker, name in ((old, "o", "from the memory"), (~old, "^", "of the new task")):
        colours = {"c": relative[mask], "cmap": "PuOr", "vmin": 1 - most, "vmax": 1 + most}
        drawn = ax.scatter(x[mask], y[mask], s=34, marker=marker, edgecolor="0.3", linewidth=0.4, label=name, **colours)
    limits = ax.get_xlim(), ax.get_ylim()
    ax.axline((0, 0), (1 - share, -share), color="black", linestyle=":", label="$I^*$ = 0")
    ax.set(xlim=limits[0], ylim=limits[1])
    ax.figure.colorbar(drawn, ax=ax, label="n · w")
    ax.set(xlabel="$I_S$, on the old classes (nats)", ylabel="$I_P$, on the new classes (nats)")
    ax.legend(fontsize=9, loc="lower left")


@typed
def influence_by_class(ax: Axes, table: pd.DataFrame, *, split: tuple[int, int]) -> None:
    """Draw influences of a batch's classes (rows) on the validation losses of classes (columns), in milli-nats.

    White lines after ``split`` rows and columns part the old task from the new one.
    """
    most = np.abs(table.to_numpy()).max()
    drawn = ax.imshow(table, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
    for row, column in np.ndindex(*table.shape):
        value = table.iloc[row, column]
        colour = "white" if abs(value) > 0.6 * most else "0.1"
        ax.text(column, row, f"{value:.0f}".replace("-0", "0"), ha="center", va="center", color=colour, fontsize=9)
    ax.axhline(split[0] - 0.5, color="black", linewidth=2)
    ax.axvline(split[1] - 0.5, color="black", linewidth=2)
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=35, ha="right")
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.grid(visible=False)
    ax.set(xlabel="on the validation loss of", ylabel="influence of the batch's")
    ax.figure.colorbar(drawn, ax=ax, label="milli-nats (negative helps)")


@typed
def how_far(
    multiples: Tensor, changes: Mapping[str, Tensor], promised: Tensor, variants: Mapping[str, float], *, near: float
) -> Figure:
    """Draw losses over the length of a correction: left its first part with the promise, right all of it.

    ``changes`` of four losses (C,), old and new, then old and new again on test images, are in nats, as is what first
    order has ``promised`` (C,) at the ``multiples`` (C,); ``variants`` maps names to multiples; the left panel ends at
    ``near`` and is in milli-nats.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.2))
    c, first = multiples.cpu().numpy(), (multiples <= near).cpu().numpy()
    styles = zip((BLUE, ORANGE, BLUE, ORANGE), ("-", "-", "--", "--"), strict=True)
    for (name, change), (colour, style) in zip(changes.items(), styles, strict=True):
        y = change.cpu().numpy()
        left.plot(c[first], 1000 * y[first], color=colour, linestyle=style)
        left.annotate(name, (c[first][-1], 1000 * y[first][-1]), (3, 0), textcoords="offset points", color=colour)
        right.plot(c, y, color=colour, linestyle=style)
        place = {"xytext": (3, 0), "textcoords": "offset points", "va": "bottom" if style == "-" else "top"}
        right.annotate(name, (c[-1], y[-1]), color=colour, **place)
    y = promised.cpu().numpy()
    left.plot(c[first], 1000 * y[first], color="black", linestyle=":")
    left.annotate("promised", (c[first][-1], 1000 * y[first][-1]), (3, 0), textcoords="offset points")
    right.plot(c, y, color="black", linestyle=":")
    for ax, last, height, end in ((left, near, 0.98, "top"), (right, c[-1], 0.02, "bottom")):
        ax.axhline(0, color="0.5", linewidth=1)
        for name, at in variants.items():
            if at <= 1.001 * last:  # the last multiple may be a rounding error short of its variant
                ax.axvline(at, color="0.6", linewidth=1)
                across = ax.get_xaxis_transform()
                ax.text(at, height, name, transform=across, rotation=90, va=end, fontsize=9, color="0.3")
    left.set(
        xlim=(0, 1.3 * near), xlabel="$κ$ in $n w_i = 1 - κ\\,I^*_i$", ylabel="loss beyond a plain step's (milli-nats)"
    )
    right.set(
        xscale="log", xlim=(0.7, 15 * c[-1]), xlabel="$κ$ (log scale)", ylabel="loss beyond a plain step's (nats)"
    )
    return figure
