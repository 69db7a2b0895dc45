"""The sliders of the notebooks: what they offer, and what they draw."""

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers.small_stages import SMALL_STAGES

from metasp_lite.calculus import Curvature
from metasp_lite.course import plots, problems, widgets
from metasp_lite.course.two_stages import TwoStages


@pytest.fixture(scope="module")
def small_toy():
    """The toy at a size whose training takes a moment."""
    return problems.toy(train_per_class=5, test_per_class=5, hidden=3, l2=0.1)


def test_epsilon_explorer_draws_the_optimum_inside_its_contours(shoes):
    widget, draw = widgets.epsilon_explorer(shoes)
    assert [type(child).__name__ for child in widget.children][:2] == ["IntSlider", "SelectionSlider"]
    plt.close("all")
    draw(example=55, epsilon=0.1)
    left, right = plt.gcf().axes
    dot = left.lines[3].get_xydata()[0]
    assert left.get_xlim()[0] < dot[0] < left.get_xlim()[1]
    assert "+0.100" in left.get_title()
    innermost = left.collections[0].get_paths()[0].vertices  # the lowest level encloses the retrained optimum
    assert np.hypot(*(innermost.mean(axis=0) - dot)) < 0.25 * np.hypot(*np.ptp(innermost, axis=0))
    assert right.lines[0].get_ydata()[-1] > right.lines[0].get_ydata()[0]  # example 55 hurts


def test_approximation_explorer_counts_signs_as_the_picture_shows(small_toy):
    _, draw = widgets.approximation_explorer(small_toy, l2_values=(0.1, 0.03))
    plt.close("all")
    draw(steps=500, step=1.0, l2=0.1)
    ax = plt.gcf().axes[0]
    right, wrong = (len(points.get_offsets()) for points in ax.collections)
    assert right + wrong == 50
    assert f"{right} of 50 signs" in ax.get_title()


def test_approximation_explorer_takes_what_is_known(small_toy, monkeypatch):
    monkeypatch.setattr(widgets, "optimum_with_l2", lambda problem, l2: pytest.fail("it trained again"))
    at = Curvature(small_toy.objective, small_toy.start, damping=20.0)
    exact = torch.linspace(-1, 1, 50, dtype=torch.float64)
    _, draw = widgets.approximation_explorer(small_toy, l2_values=(0.03,), known={0.03: (at, exact)})
    plt.close("all")
    draw(steps=1, step=1.0, l2=0.03)
    assert "of 50 signs" in plt.gcf().axes[0].get_title()


def test_filter_explorer_marks_what_the_sliders_say(small_toy):
    widget, draw = widgets.filter_explorer(Curvature(small_toy.objective, small_toy.start, damping=20.0))
    assert [child.description for child in widget.children[:2]] == ["K", "δ"]
    plt.close("all")
    draw(steps=5, damping=0.1)
    ax = plt.gcf().axes[0]
    assert "K = 5" in ax.get_title()
    assert ax.texts[1].get_text() == "1/δ = 10"


def test_the_picker_shows_the_most_helpful_and_the_most_harmful_images(monkeypatch):
    problem = TwoStages(SMALL_STAGES)
    drawn = []
    monkeypatch.setattr(plots, "image_grid", lambda images, titles, **_: drawn.append((images, titles)))
    scores = torch.arange(6 * 24.0).view(6, 24).flip(1)  # the last image has the lowest influence
    widget, draw = widgets.pretraining_explorer(problem, scores)
    assert isinstance(widget.children[0], ipywidgets.Dropdown)
    assert len(widget.children[0].options) == 6
    draw(4)
    images, titles = drawn[-1]
    first, tested = problem.originals
    assert images.shape[1:] == (1, 28, 28)  # not the 14×14 that the network sees
    assert torch.equal(images[0], tested[4])
    assert torch.equal(images[1:7], first[-6:].flip(0))
    assert torch.equal(images[8:], first[:6])
    assert titles[0] == titles[7] == "test image:\nAnkle boot"
    assert titles[1] == "Trouser\n+96"


@pytest.mark.parametrize(
    ("angle", "first", "second", "point"),
    [
        (90, 1.0, 2.0, (0.8, 0.4)),  # the foot of the height on the hypotenuse: γ = 2²/(1² + 2²)
        (0, 1.0, 2.0, (1.0, 0.0)),  # the shorter itself
        (180, 1.0, 1.0, (0.0, 0.0)),  # they cancel
    ],
)
def test_min_norm_explorer_marks_the_point_of_the_segment_nearest_to_the_origin(angle, first, second, point):
    widget, draw = widgets.min_norm_explorer()
    assert [child.description for child in widget.children[:3]] == ["angle", "|g₁|", "|g₂|"]
    plt.close("all")
    draw(angle=angle, first=first, second=second)
    left, right = plt.gcf().axes
    assert left.lines[2].get_xydata()[0] == pytest.approx(point, abs=1e-12)  # sin 180° is 1e-16
    assert right.lines[1].get_ydata()[0] == pytest.approx(point[0] ** 2 + point[1] ** 2, abs=1e-12)
