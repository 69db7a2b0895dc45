"""The figures of notebook 02: every method, starting weight and size of batch is to be seen, or is refused."""

import matplotlib.pyplot as plt
import pytest
import torch
from helpers.analytic import with_spectrum

from metasp_lite.course import approximation_plots


def looks(axes_lines):
    """Colour, line style and marker of each line."""
    return [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes_lines]


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_right_and_wrong_signs_are_all_drawn():
    exact, approximate = torch.tensor([-1.0, 1.0, 2.0, -2.0]), torch.tensor([-1.0, 2.0, -1.0, -0.5])
    _, ax = plt.subplots()
    approximation_plots.approximate_against_exact(ax, exact, approximate)
    assert [len(points.get_offsets()) for points in ax.collections] == [3, 1]
    assert entries(ax) == ["sign right: 3", "sign wrong: 1"]
    assert len(ax.patches) == 2


def test_cost_picture_has_every_method_in_three_panels():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    path = {1: torch.tensor([-1.0, 1.0, -1.0, 1.0]), 10: exact}
    figure = approximation_plots.accuracy_against_cost(exact, {"series": path}, {"points": path}, {"level": path[1]})
    assert [ax.get_ylabel() for ax in figure.axes] == ["right signs, of 4", "balanced accuracy", "Pearson r"]
    agreement = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert agreement == {"level": [3, 3], "constant guess": [3, 3], "series": [3, 4], "points": [3, 4]}


@pytest.mark.parametrize(("lines", "points", "levels"), [(4, 3, 2), (0, 1, 0), (1, 0, 1)])
def test_cost_picture_draws_as_many_methods_as_it_can_tell_apart(lines, points, levels):
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    figure = approximation_plots.accuracy_against_cost(
        exact,
        {f"line {k}": {1: exact} for k in range(lines)},
        {f"points {k}": {1: exact} for k in range(points)},
        {f"level {k}": exact for k in range(levels)},
    )
    assert [len(ax.lines) for ax in figure.axes] == [lines + points + levels + with_guess for with_guess in (1, 1, 0)]
    assert len(figure.legends[0].get_texts()) == lines + points if lines + points else not figure.legends
    named = {f"level {k}" for k in range(levels)} | {"constant guess"}
    assert {text.get_text() for text in figure.axes[0].texts} == named  # on the lines themselves
    assert len(set(looks(figure.axes[0].lines[levels + 1 :]))) == lines + points


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((5, 0, 0), "5 methods as lines: 4 can be told apart"),
        ((0, 4, 0), "4 methods as points: 3 can be told apart"),
        ((0, 0, 3), "3 methods as levels: 2 can be told apart"),
    ],
)
def test_cost_picture_refuses_more_methods_than_it_can_tell_apart(counts, message):
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    lines, points, levels = (range(count) for count in counts)
    with pytest.raises(ValueError, match=message):
        approximation_plots.accuracy_against_cost(
            exact, {k: {1: exact} for k in lines}, {k: {1: exact} for k in points}, dict.fromkeys(levels, exact)
        )
    assert not plt.get_fignums()


def test_cost_picture_has_other_starting_weights_as_thin_lines_and_bands():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    wrong, path = torch.tensor([1.0, 1.0, -1.0, 1.0]), {0: -exact, 10: exact}
    others = [(exact, {"series": path}, {"point": {5: wrong}}, {"level": wrong})] * 2
    figure = approximation_plots.accuracy_against_cost(
        exact, {"series": path}, {"point": {5: exact}}, {"level": exact}, others=others
    )
    first = figure.axes[0]
    series = [line for line in first.lines if list(line.get_xdata()) == [0, 10]]
    assert [list(line.get_ydata()) for line in series] == [[0, 4]] * 3
    assert [line.get_linewidth() < 1 for line in series] == [True, True, False]
    assert [(band.get_y(), band.get_height()) for band in first.patches] == [(2, 2)]  # from 2 right signs to 4
    (bar,) = first.collections
    assert bar.get_segments()[0].tolist() == [[5, 2], [5, 4]]


def test_lengths_show_the_whole_path_every_batch_goal_and_level():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    path = {1: torch.tensor([-1.0, 1.0, -1.0, 1.0]), 0.1: exact}
    _, ax = plt.subplots()
    batches = {f"batches of {size}": path for size in (1, 2, 3)}
    approximation_plots.agreement_against_length(
        ax, exact, {1: exact}, batches, {"a level": -exact}, {"a goal": 3}, title="t"
    )
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines[2:]}
    assert drawn.pop("all examples") == ([1], [4])
    assert drawn == dict.fromkeys(batches, ([0.1, 1], [4, 3]))
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[3, 3], [0, 0]]
    assert [text.get_text() for text in ax.texts] == ["a goal", "a level"]
    assert len(set(looks(ax.lines[2:]))) == 4
    with pytest.raises(ValueError, match="4 sizes of batches: 3 can be told apart"):
        approximation_plots.agreement_against_length(ax, exact, path, dict.fromkeys(range(4), path), {}, {})


def test_filter_factors_are_those_of_the_matrices_themselves():
    """On a Hessian whose inverse, powers and exponential are taken as matrices, not eigenvalue by eigenvalue."""
    hessian = with_spectrum(torch.linspace(0.05, 2.0, 6, dtype=torch.float64))
    values, basis = torch.linalg.eigh(hessian)
    one, a, K = torch.eye(6, dtype=torch.float64), 0.4, 7
    expected = {
        "exact": torch.linalg.inv(hessian),
        "identity, times a": a * one,
        "K pseudo-updates": a * sum(torch.linalg.matrix_power(one - a * hessian, j) for j in range(K)),
        "one segment of SOURCE": torch.linalg.solve(hessian, one - torch.matrix_exp(-a * K * hessian)),
        "damping": torch.linalg.inv(hessian + 0.3 * one),
    }
    factors = approximation_plots.filter_factors(values, step=a, steps=K, damping=0.3)
    assert list(factors) == list(expected)
    for name, factor in factors.items():  # condition 40, so that 1e-12 is far above rounding
        torch.testing.assert_close(basis @ torch.diag(factor) @ basis.T, expected[name], rtol=0, atol=1e-12)


def test_the_picture_of_filters_has_every_factor_and_both_bounds():
    _, ax = plt.subplots()
    approximation_plots.filters(ax, 0.01, 10.0, step=0.1, steps=20, damping=0.25)
    assert entries(ax) == list(approximation_plots.filter_factors(torch.ones(1), step=1, steps=1, damping=1))
    assert [text.get_text() for text in ax.texts] == ["aK = 2", "1/δ = 4"]
    assert len(set(looks(ax.lines[:5]))) == 5
    with pytest.raises(ValueError, match=r"eigenvalues from -0\.1 to 10"):
        approximation_plots.filters(ax, -0.1, 10.0, step=0.1, steps=20, damping=0.25)


def test_levels_that_are_near_each_other_have_their_names_on_two_sides():
    exact = torch.ones(100)
    near = {"upper": exact, "lower": torch.where(torch.arange(100) < 2, -exact, exact)}
    _, ax = plt.subplots()
    approximation_plots.agreement_against_length(ax, exact, {1: exact}, {}, near, {})
    offsets = {text.get_text(): text.xyann[1] for text in ax.texts}
    assert offsets["lower"] < 0 < offsets["upper"]
