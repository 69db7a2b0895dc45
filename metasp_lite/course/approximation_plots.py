"""What notebook 02 draws: approximate influences against exact ones, against their cost and against their length."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metasp_lite.course.plots import BLUE, BROWN, GREEN, ORANGE, PURPLE, arrays
from metasp_lite.doors import Count, typed
from metasp_lite.influence.agreement import pearson, sign_confusion

Path = Mapping[float, Tensor]  # at each cost, or length, the influences (n,)


@typed
def approximate_against_exact(ax: Axes, exact: Tensor, approximate: Tensor) -> None:
    """Scatter approximate against exact influences (n,); the two shaded quarters hold the wrong signs."""
    x, y = arrays(exact=exact, approximate=approximate)
    wrong = (x > 0) != (y > 0)
    reach = [1.1 * np.abs(v).max() for v in (x, y)]
    for corner in ((0, -reach[1]), (-reach[0], 0)):
        ax.add_patch(plt.Rectangle(corner, reach[0], reach[1], color="0.92", zorder=0))
    for mask, colour, marker, name in ((~wrong, BLUE, "o", "sign right"), (wrong, ORANGE, "x", "sign wrong")):
        ax.scatter(x[mask], y[mask], s=14, color=colour, marker=marker, linewidth=0.8, label=f"{name}: {mask.sum()}")
    ax.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    ax.set(xlabel="exact influence", ylabel="approximate influence")
    ax.legend(fontsize=8, loc="upper left")


@typed
def accuracy_against_cost(
    exact: Tensor,
    lines: Mapping[str, Path],
    points: Mapping[str, Path],
    levels: Mapping[str, Tensor],
    *,
    others: Sequence[tuple[Tensor, Mapping[str, Path], Mapping[str, Path], Mapping[str, Tensor]]] = (),
) -> Figure:
    """Draw sign agreement, balanced accuracy and Pearson r with ``exact (n,)`` over the number of products.

    ``lines`` and ``points`` map a method to its influences ``(n,)`` at each cost; ``levels`` maps a method without
    products to its influences.  The best constant guess is drawn as a level too; it has no correlation.  Each of
    ``others``, from another starting weight, is its exact influences, lines, points and levels: thin lines, bars from
    lowest to highest, and bands.  The axis is linear from 0 to 1 and logarithmic beyond.

    Raises:
        ValueError: for more lines, points or levels than can be told apart.
    """
    for kind, given, most in (("lines", lines, 4), ("points", points, 3), ("levels", levels, 2)):
        if len(given) > most:
            raise ValueError(f"{len(given)} methods as {kind}: {most} can be told apart; leave out the others")
    agreement, balanced = f"right signs, of {len(exact)}", "balanced accuracy"
    measures: dict[str, Callable[[Tensor, Tensor], float]] = {
        agreement: lambda true, values: sign_confusion(true, values).agreement,
        balanced: lambda true, values: sign_confusion(true, values).balanced_accuracy,
        "Pearson r": pearson,
    }
    constant = {agreement: sign_confusion(exact, exact).baseline, balanced: 0.5}
    looks = [(GREEN, "-"), (PURPLE, "-."), (BLUE, "--"), (BROWN, ":")]
    styles = dict(zip(lines, looks[: len(lines)], strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.6), sharex=True)
    for ax, (label, measure) in zip(axes, measures.items(), strict=True):
        heights = {name: measure(exact, values) for name, values in levels.items()}
        for name in levels:
            spread = [measure(true, given[name]) for true, _, _, given in others if name in given]
            if spread:
                ax.axhspan(min(*spread, heights[name]), max(*spread, heights[name]), color="0.5", alpha=0.15, zorder=0)
        if label in constant:
            heights["constant guess"] = constant[label]
        for name, height in heights.items():
            ax.axhline(height, color="0.4", linewidth=1.1, linestyle=":", label=name)
            ax.annotate(name, (1, height), (-3, 2), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
        for true, paths, _, _ in others:
            for name, path in paths.items():
                ax.plot(list(path), [measure(true, v) for v in path.values()], color=styles[name][0], linewidth=0.6)
        for name, path in lines.items():
            colour, style = styles[name]
            ax.plot(list(path), [measure(exact, v) for v in path.values()], color=colour, linestyle=style, label=name)
        for (name, path), marker in zip(points.items(), "os^"[: len(points)], strict=True):
            heights_of_points = [measure(exact, v) for v in path.values()]
            ax.plot(list(path), heights_of_points, marker, color=ORANGE, markersize=8, label=name)
            for cost, height in zip(path, heights_of_points, strict=True):
                found = [measure(true, given[name][cost]) for true, _, given, _ in others if name in given]
                if found:
                    ax.vlines(cost, min(*found, height), max(*found, height), color=ORANGE, linewidth=2, zorder=1)
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.set(xlabel="Hessian-vector products", ylabel=label, xlim=(-0.15, None))
    drawn = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    shown = {name: drawn[name] for name in (*lines, *points)}
    if shown:
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=4, fontsize=10, frameon=False)
    return figure


@typed
def agreement_against_length(
    ax: Axes,
    exact: Tensor,
    full: Path,
    batches: Mapping[str, Path],
    levels: Mapping[str, Tensor],
    goals: Mapping[str, int],
    *,
    title: str = "",
) -> None:
    """Draw how many signs of ``exact (n,)`` pseudo-updates get right, over the length a·K of their path.

    ``full`` are those on all examples, ``batches`` those on mini-batches, by the name of their size; each maps a·K, in
    units of 1/s_max, to influences ``(n,)``.  ``levels`` are influences that know no length, ``goals`` numbers of right
    signs to be reached.

    Raises:
        ValueError: for more sizes of batches than the three that can be told apart.
    """
    if len(batches) > 3:
        raise ValueError(f"{len(batches)} sizes of batches: 3 can be told apart; leave out the others")

    def right(values: Tensor) -> int:
        return sign_confusion(exact, values).agreement

    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that no line runs through a name
    for name, goal in goals.items():
        ax.axhline(goal, color="0.55", linewidth=1, zorder=1)
        below = any(0 < other - goal < 0.02 * len(exact) for other in goals.values())  # no room above
        where = (0, goal), (3, -9.5 if below else 1.5), ("axes fraction", "data")
        ax.annotate(name, *where, "offset points", fontsize=8, color="0.3", bbox=paper)
    for name, values in levels.items():
        height = right(values)
        ax.axhline(height, color="black", linewidth=1.3, linestyle=":", zorder=1)
        below = any(0 < right(other) - height < 0.05 * len(exact) for other in levels.values())
        where = (1, height), (-3, -9.5 if below else 1.5), ("axes fraction", "data")
        ax.annotate(name, *where, "offset points", ha="right", fontsize=8)
    ax.plot(list(full), [right(v) for v in full.values()], color=BLUE, linewidth=2.2, label="all examples")
    for (name, path), colour, marker in zip(
        batches.items(), (GREEN, PURPLE, ORANGE)[: len(batches)], "^sD"[: len(batches)], strict=True
    ):
        lengths = sorted(path)
        ax.plot(lengths, [right(path[x]) for x in lengths], color=colour, marker=marker, linewidth=1, label=name)
    ax.set(
        xscale="log", xlabel="length a·K of the path, in units of 1/$s_{max}$", ylabel=f"right signs, of {len(exact)}"
    )
    shortest = min(min(path) for path in (full, *batches.values()))
    ax.set_xlim(left=shortest / 80)  # room for the names of the goals
    ax.set_title(title, fontsize=10)


@typed
def filter_factors(eigenvalues: Tensor, *, step: float, steps: Count, damping: float) -> dict[str, Tensor]:
    """What each method multiplies the component of v along an eigenvector by, (n,) for ``eigenvalues (n,)`` s > 0.

    Exact 1/s; the identity, times a; K pseudo-updates, which are K Neumann terms, (1 − (1 − as)^K)/s; one segment of
    SOURCE (Bae et al., 2024), which takes training for a flow, (1 − e^{−aKs})/s; damping, 1/(s + δ).
    """
    s, a = eigenvalues, step
    return {
        "exact": 1 / s,
        "identity, times a": torch.full_like(s, a),
        "K pseudo-updates": (1 - (1 - a * s) ** steps) / s,
        "one segment of SOURCE": (1 - torch.exp(-a * steps * s)) / s,
        "damping": 1 / (s + damping),
    }


@typed
def filters(ax: Axes, smallest: float, largest: float, *, step: float, steps: Count, damping: float) -> None:
    """Draw the filter factors over eigenvalues from ``smallest`` > 0 to ``largest``, both axes logarithmic.

    Grey lines mark what the factors of few steps and of damping end at, aK and 1/δ.

    Raises:
        ValueError: for a smallest eigenvalue that is not above 0, where 1/s is no inverse of a minimum's Hessian.
    """
    if not 0 < smallest < largest:
        raise ValueError(f"eigenvalues from {smallest:.3g} to {largest:.3g}: give two above 0, the smallest first")
    s = torch.logspace(np.log10(smallest), np.log10(largest), 400, dtype=torch.float64)
    looks = [("black", "-", 1.4), (BROWN, ":", 2.2), (BLUE, "-", 2.6), (GREEN, "--", 2.2), (ORANGE, "-.", 2.2)]
    factors = filter_factors(s, step=step, steps=steps, damping=damping)
    for (name, values), (colour, style, width) in zip(factors.items(), looks, strict=True):
        ax.plot(s, values, color=colour, linestyle=style, linewidth=width, label=name)
    for name, height in (("aK", step * steps), ("1/δ", 1 / damping)):
        ax.axhline(height, color="0.7", linewidth=1, zorder=0)
        lower = height < max(step * steps, 1 / damping)
        where = (1, height), (-3, -11 if lower else 3), ("axes fraction", "data")
        ax.annotate(f"{name} = {height:.3g}", *where, "offset points", ha="right", fontsize=9, color="0.3")
    ax.set(xscale="log", yscale="log", ylim=(0.5 * step, 1.5 / smallest))
    ax.set(xlabel="eigenvalue s of the Hessian", ylabel="factor on the component along it")
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)  # beside the lines, over none
