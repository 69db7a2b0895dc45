"""Figures of one MetaSP step, for notebook 03 (its examples also for 04): arrays in, axes out."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metasp_lite.course.plots import BLUE, GREEN, ORANGE, PURPLE
from metasp_lite.doors import typed


@typed
def shortest_vector(
    first: np.ndarray,
    second: np.ndarray,
    gamma: float,
    *,
    reach: float = 2.4,
    names: tuple[str, str, str] = ("g_1", "g_2", "d^*"),
) -> Figure:
    """Left: two vectors (2,) and the point γ g₁ + (1−γ) g₂ of the segment between them; right: its length along γ.

    The axes go from −reach to reach; ``names`` are those of g₁, of g₂ and of the negated point.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    point = gamma * first + (1 - gamma) * second
    g, h, down = names
    arrows = (
        (first, BLUE, f"${g}$"),
        (second, ORANGE, f"${h}$"),
        (-point, GREEN, f"${down} = -(γ^*{g} + (1-γ^*){h})$"),
    )
    for vector, colour, name in arrows:
        left.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
        left.plot([], [], color=colour, linewidth=2, label=name)
        tip = vector + 0.13 * reach * vector / max(np.hypot(*vector), 1e-9)
        left.annotate(name.partition(" = ")[0].rstrip("$") + "$", tip, ha="center", va="center", fontsize=10)
    left.plot(*np.stack([first, second]).T, color="0.4", linestyle="--", linewidth=1, label="the segment")
    left.plot(*np.stack([np.zeros(2), point]).T, color=GREEN, linestyle=":", linewidth=2, label="shortest vector")
    left.plot(*point, "o", color=GREEN, markersize=8)
    left.set(
        xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="first component", ylabel="second component"
    )
    left.set_title(f"slopes along ${down}$: {-first @ point:.3f} and {-second @ point:.3f}", fontsize=10)
    left.legend(fontsize=8, loc="lower right")
    along = np.linspace(-0.5, 1.5, 101)
    points = along[:, None] * first + (1 - along[:, None]) * second
    right.axvspan(0, 1, color="0.93")
    right.plot(along, (points**2).sum(axis=1), color="0.4", linestyle="--", label=f"$\\|γ {g} + (1-γ) {h}\\|^2$")
    right.plot(gamma, point @ point, "o", color=GREEN, markersize=8, label=f"γ* = {gamma:.3f}")
    right.set(xlabel="γ (allowed: shaded)", ylabel="squared length", ylim=(0, None))
    right.legend(fontsize=8)
    return figure


@typed
def pareto_paths(
    objectives: Sequence[Callable[[np.ndarray], np.ndarray]],
    paths: Mapping[str, Sequence[np.ndarray]],
    front: np.ndarray,
) -> Figure:
    """Draw descents for two ``objectives`` of points (…, 2): over their contours (left) and as pairs of values (right).

    ``paths`` maps a rule to its paths (S, 2) from several starts; ``front`` (F, 2) are the Pareto-optimal points.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    everything = np.concatenate([front, *(path for many in paths.values() for path in many)])
    low, high = everything.min(axis=0) - 0.4, everything.max(axis=0) + 0.4
    axes = [np.linspace(a, b, 81) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), axis=-1)
    for objective, colour in zip(objectives, (BLUE, ORANGE), strict=True):
        values = objective(grid)
        levels = values.max() * np.linspace(0.05, 0.9, 8) ** 2
        left.contour(*axes, values, levels=levels, colors=colour, linewidths=0.6, alpha=0.6)
    left.plot(*front.T, color="black", linewidth=3, label="Pareto-optimal")
    for end, name, aside in ((front[-1], "minimum of $f_1$", (-10, 0)), (front[0], "minimum of $f_2$", (0, 14))):
        place = {"xytext": aside, "textcoords": "offset points", "ha": "right" if aside[0] else "center"}
        left.annotate(name, end, **place, fontsize=8, va="center", bbox={"color": "white", "pad": 1})
    right.plot(*(objective(front) for objective in objectives), color="black", linewidth=3, label="Pareto front")
    for (name, many), colour, style in zip(paths.items(), (GREEN, PURPLE), ("-", "--"), strict=True):
        for k, path in enumerate(many):
            label = name if k == 0 else None
            left.plot(*path.T, color=colour, linestyle=style, linewidth=1.8, label=label)
            right.plot(*(objective(path) for objective in objectives), color=colour, linestyle=style, label=label)
            left.plot(*path[0], "o", color="0.3", markersize=6)
            left.plot(*path[-1], "s", color=colour, markersize=6)
            right.plot(*(objective(path[0]) for objective in objectives), "o", color="0.3", markersize=6)
            right.plot(*(objective(path[-1]) for objective in objectives), "s", color=colour, markersize=6)
    left.set(xlabel="$θ_1$", ylabel="$θ_2$", title="contours of $f_1$ (blue) and $f_2$ (orange)")
    right.set(xlabel="$f_1$", ylabel="$f_2$", title="the two losses; circles: starts, squares: ends")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
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

    ``reach``: the largest influence in the picture; all are where it is None.
    """
    x, y, old = (values.cpu().numpy() for values in (stability, plasticity, from_memory))
    wide, high = (reach or 1.15 * np.abs(values).max() for values in (x, y))
    ax.add_patch(plt.Rectangle((-wide, -high), wide, high, color="0.92", zorder=0))
    ax.axhline(0, color="0.5", linewidth=1)
    ax.axvline(0, color="0.5", linewidth=1)
    for mask, colour, marker, name in ((old, BLUE, "o", "from the memory"), (~old, ORANGE, "^", "of the new task")):
        ax.scatter(x[mask], y[mask], s=26, color=colour, marker=marker, edgecolor="white", linewidth=0.4, label=name)
    for i in numbered:  # on the side away from the nearest other, so that neighbours stay readable
        away = {j: float(np.hypot((x[i] - x[j]) / wide, (y[i] - y[j]) / high)) for j in numbered if j != i}
        nearest = min(away, key=away.__getitem__, default=i)
        aside, alignment = ((6, -3), "left") if x[i] > x[nearest] else ((-6, -3), "right")
        here = float(x[i]), float(y[i])
        offset = "offset points"
        ax.annotate(str(i), here, xytext=aside, textcoords=offset, ha=alignment, annotation_clip=True, fontsize=8)
    ax.set(xlim=(-wide, wide), ylim=(-high, high))
    ax.set(xlabel="$I_S$, influence on the old classes (left helps)", ylabel="$I_P$, on the new classes (below helps)")
    ax.legend(fontsize=8)


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
    ax.set(xlabel="$I_S$, influence on the old classes", ylabel="$I_P$, on the new classes")
    ax.legend(fontsize=8)


@typed
def weights_of_variants(axes: Sequence[Axes], weights: Mapping[str, Tensor], from_memory: Tensor) -> None:
    """Draw one histogram for each variant of the weights ``(n,)`` times n; memory and new examples are stacked."""
    old, everything = from_memory.cpu().numpy(), {name: (len(w) * w).cpu().numpy() for name, w in weights.items()}
    bins = np.linspace(min(w.min() for w in everything.values()), max(w.max() for w in everything.values()), 25)
    for ax, (name, relative) in zip(axes, everything.items(), strict=True):
        ax.hist(
            [relative[old], relative[~old]],
            bins.tolist(),
            stacked=True,
            color=(BLUE, ORANGE),
            hatch=("//", ""),
            label=("from the memory", "of the new task"),
        )
        ax.axvline(1, color="black", linestyle=":", label="plain mean")
        ax.set(xlabel="n · w", title=f"{name}: mean {relative.mean():.3f}, spread {relative.std(ddof=1):.3f}")
    axes[0].set_ylabel("examples")
    axes[0].legend(fontsize=8)
