"""Sliders over the figures, of notebooks 01, 02, 04 and 08.

Each explorer returns ``(widget, draw)``: show the widget in one cell, and call ``draw`` once in the next, so that a
reader without a kernel sees the picture and a test runs the path that the slider takes.
"""

from collections.abc import Callable, Mapping
from functools import cache

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.min_norm import min_norm_pair
from metasp_lite.course import approximation_plots, optimum_plots, plots, step_plots
from metasp_lite.course.problems import Problem
from metasp_lite.course.travel import influence_by_series, optimum_with_l2, surroundings, travel_of_optimum
from metasp_lite.course.two_stages import TwoStages
from metasp_lite.doors import typed
from metasp_lite.influence.agreement import pearson, sign_confusion

_Draw = Callable[..., None]


@typed
def epsilon_explorer(problem: Problem, *, example: int = 0, largest: float = 0.1) -> tuple[ipywidgets.Widget, _Draw]:
    """Sliders for an example and its extra weight ε; draws the optimum's travel and the validation loss along ε.

    ε runs from −1/n, the example left out, over 0 to ``largest``; ``example`` is where its slider starts.
    """
    left_out = -1 / len(problem.objective.losses)
    epsilons = np.concatenate([[left_out, left_out / 2], np.linspace(0, largest, 11)])
    travel = cache(lambda example: travel_of_optimum(problem, example, epsilons))

    def draw(example: int, epsilon: float) -> None:
        path, at = travel(example), int(np.abs(epsilons - epsilon).argmin())
        optimum_plots.optimum_travel(path, surroundings(problem, example, path, at), at)
        plt.show()

    sliders = {
        "example": ipywidgets.IntSlider(example, 0, len(problem.objective.losses) - 1, continuous_update=False),
        "epsilon": ipywidgets.SelectionSlider(
            options=[(f"{e:+.3f}", float(e)) for e in epsilons], value=float(epsilons[-1]), continuous_update=False
        ),
    }
    return _explorer(draw, sliders), draw


@typed
def approximation_explorer(
    problem: Problem,
    *,
    l2_values: tuple[float, ...] = (0.01, 0.03, 0.1),
    known: Mapping[float, tuple[Curvature, Tensor]] | None = None,
) -> tuple[ipywidgets.Widget, _Draw]:
    """Sliders for K, the step (as a multiple of 1/s_max) and λ; draws K-step influences against the exact ones.

    The approximate ones are the Neumann series, which the K-step pseudo-update equals at the optimum.  ``known`` has
    the curvature and the exact influences ``(n,)`` for each λ that was trained already; for any other one it trains.
    """
    at_optimum = cache(lambda l2: (known or {}).get(l2) or optimum_with_l2(problem, l2))

    def draw(steps: int, step: float, l2: float) -> None:
        curvature, exact = at_optimum(l2)
        approximate = influence_by_series(problem, curvature, steps, step)
        signs = sign_confusion(exact, approximate)
        _, ax = plt.subplots(figsize=(5.5, 4.2))
        approximation_plots.approximate_against_exact(ax, exact, approximate)
        ax.set_title(
            f"K = {steps}, step = {step:g}/$s_{{max}}$, λ = {l2:g}: {signs.agreement} of {signs.total} signs\n"
            f"(constant guess {signs.baseline}), balanced {signs.balanced_accuracy:.2f}, "
            f"r = {pearson(exact, approximate):.2f}",
            fontsize=10,
        )
        plt.show()

    sliders = {
        "steps": ipywidgets.SelectionSlider(
            options=[1, 2, 5, 10, 20, 50, 100, 200, 500], value=20, continuous_update=False, description="K"
        ),
        "step": ipywidgets.SelectionSlider(
            options=[0.01, 0.1, 0.5, 1.0, 1.5, 1.9], value=1.0, continuous_update=False, description="step·s_max"
        ),
        "l2": ipywidgets.SelectionSlider(options=l2_values, value=0.03, continuous_update=False, description="λ"),
    }
    return _explorer(draw, sliders), draw


@typed
def filter_explorer(curvature: Curvature[Penalised]) -> tuple[ipywidgets.Widget, _Draw]:
    """Sliders for K and δ; draws the filter factors over the range of the curvature's eigenvalues, with a = 1/s_max."""
    smallest, largest = curvature.smallest_eigenvalue, curvature.largest_eigenvalue

    def draw(steps: int, damping: float) -> None:
        _, ax = plt.subplots(figsize=(7.5, 4.6))
        approximation_plots.filters(ax, smallest, largest, step=1 / largest, steps=steps, damping=damping)
        ax.set_title(f"K = {steps} steps of a = 1/$s_{{max}}$, damping δ = {damping:g}", fontsize=11)
        plt.show()

    sliders = {
        "steps": ipywidgets.SelectionSlider(
            options=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], value=20, continuous_update=False, description="K"
        ),
        "damping": ipywidgets.SelectionSlider(
            options=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0], value=1.0, continuous_update=False, description="δ"
        ),
    }
    return _explorer(draw, sliders), draw


def min_norm_explorer() -> tuple[ipywidgets.Widget, _Draw]:
    """Sliders for the angle between two gradients, in degrees, and their lengths; draws the shortest vector between."""

    def draw(angle: float, first: float, second: float) -> None:
        turn = np.deg2rad(angle)
        g1, g2 = first * np.array([1.0, 0.0]), second * np.array([np.cos(turn), np.sin(turn)])
        gamma = float(min_norm_pair(torch.from_numpy(g1), torch.from_numpy(g2)).gamma)
        step_plots.shortest_vector(g1, g2, gamma)
        plt.show()

    sliders = {
        "angle": ipywidgets.IntSlider(110, 0, 180, 5, continuous_update=False),
        "first": ipywidgets.FloatSlider(1.0, min=0, max=2, step=0.1, continuous_update=False, description="|g₁|"),
        "second": ipywidgets.FloatSlider(1.5, min=0, max=2, step=0.1, continuous_update=False, description="|g₂|"),
    }
    return _explorer(draw, sliders), draw


@typed
def pretraining_explorer(problem: TwoStages, scores: Tensor) -> tuple[ipywidgets.Widget, _Draw]:
    """Choose a test image of the second stage; draws the pretraining images with the lowest and the highest influence.

    ``scores (K, m)`` are influences of the m pretraining images on the K test images.  All are drawn as the data set
    has them, which the network does not see.
    """
    tests, images = problem.test_images, problem.pretraining_images
    pretrained_on, tested_on = problem.originals

    def draw(test: int) -> None:
        order = scores[test].argsort().cpu()
        chosen = torch.cat([order[:6], order[-6:].flip(0)])
        this = tested_on[test : test + 1]
        pictures = torch.cat([this, pretrained_on[chosen[:6]], this, pretrained_on[chosen[6:]]])
        titles = [f"{images.classes[images.labels[i]]}\n{scores[test, i].item():+.2g}" for i in chosen]
        name = f"test image:\n{tests.classes[tests.labels[test]]}"
        heading = "above: helped most by these; below: hurt most by these (class and influence)"
        plots.image_grid(pictures, [name, *titles[:6], name, *titles[6:]], columns=7, heading=heading)
        plt.show()

    names = [f"{k}: {tests.classes[label]}" for k, label in enumerate(tests.labels.tolist())]
    picker = ipywidgets.Dropdown(options=list(zip(names, range(len(names)), strict=True)), value=0)
    return _explorer(draw, {"test": picker}), draw


def _explorer(draw: _Draw, sliders: dict[str, ipywidgets.Widget]) -> ipywidgets.Widget:
    output = ipywidgets.interactive_output(draw, sliders)
    for name, slider in sliders.items():
        slider.description = slider.description or name
    return ipywidgets.VBox([*sliders.values(), output])
