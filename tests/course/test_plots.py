"""The look of all figures and those of notebooks 01, 08 or several: all that goes in is to be seen, or is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from metasp_lite.course import plots


def looks(axes_lines):
    """Colour, line style and marker of each line."""
    return [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes_lines]


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_many_series_stay_apart_and_the_first_six_look_as_they_always_did():
    ax = plt.figure().subplots()
    ax.set_prop_cycle(plots.MARKED_LINES)
    marked = looks(ax.plot(np.zeros((2, 252))))
    assert len(set(marked)) == 252
    colours = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.BROWN, "0.3")
    assert marked[:6] == list(zip(colours, ("-", "--", "-.", ":", "-", "--"), "o^sDvx", strict=True))
    assert len({colour for colour, _, _ in marked[:7]}) == 7
    ax.set_prop_cycle(plots.LINES)
    plain = looks(ax.plot(np.zeros((2, 28))))
    assert [look[:2] for look in plain] == [look[:2] for look in marked[:28]]
    assert len({look[:2] for look in plain}) == 28


def test_the_style_is_the_colour_blind_palette():
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == pytest.approx(
            plt.matplotlib.colors.to_rgb(plots.BLUE), abs=1 / 255
        )


def test_a_grid_shows_every_image_and_leaves_the_rest_of_its_last_row_empty():
    images = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 1, 2, 2)
    figure = plots.image_grid(images, [f"image {k}" for k in range(11)], columns=4, heading="all")
    shown = [ax for ax in figure.axes if ax.images]
    assert (len(figure.axes), len(shown)) == (12, 11)
    assert [int(ax.images[0].get_array()[0, 0]) for ax in shown] == list(range(11))
    assert [ax.get_title() for ax in figure.axes] == [*(f"image {k}" for k in range(11)), ""]


def test_image_grid_refuses_missing_titles():
    with pytest.raises(ValueError, match="2 images and 1 titles"):
        plots.image_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ["one"])


def test_image_grid_refuses_no_images():
    with pytest.raises(ValueError, match="0 images and 0 titles"):
        plots.image_grid(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), [])


def test_two_classes_show_every_example_the_line_between_and_both_in_the_ring_apart():
    inputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.1]], dtype=torch.float64)
    _, ax = plt.subplots()
    plots.two_classes(ax, inputs, torch.tensor([0, 0, 1]), ("a", "an b"), torch.tensor([1.0, 2.0]), ringed=(1, 2))
    *classes, ring = [points.get_offsets().tolist() for points in ax.collections]
    assert classes == [[[0, 1], [1, 0]], [[1, 0.1]]]
    np.testing.assert_allclose(ring, [[1, 0.05]])
    assert entries(ax) == ["a", "an b"]
    np.testing.assert_allclose(ax.lines[0].get_xydata() @ [1, 2], 0, atol=1e-12)  # rounding of numbers around 3
    (inset,) = ax.child_axes
    assert [points.get_offsets().tolist() for points in inset.collections] == [[[1, 0]], [[1, 0.1]]]
    assert [text.get_text() for text in inset.texts] == ["a 1", "b 2"]
    ends = np.array([inset.get_xlim(), inset.get_ylim()])
    assert (ends[:, 0] < [1, 0]).all()
    assert (ends[:, 1] > [1, 0.1]).all()


def test_the_map_of_influences_shows_every_example_by_class_sign_and_size():
    inputs = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 1.0], [1.0, -2.0]], dtype=torch.float64)
    influences = torch.tensor([-4.0, 1.0, 2.0, -1.0])
    _, ax = plt.subplots()
    plots.influence_map(ax, inputs, torch.tensor([0, 0, 1, 1]), ("a", "b"), influences, torch.tensor([0.5, 2.0]))
    drawn = [points for points in ax.collections if len(points.get_offsets())]
    assert [points.get_offsets().tolist() for points in drawn] == [[[0, 1]], [[0, -1]], [[1, -2]], [[1, 1]]]
    areas = [float(points.get_sizes()[0]) for points in drawn]
    assert areas[0] > areas[3] > areas[1] == areas[2]
    assert [bool(len(points.get_facecolor())) for points in drawn] == [False, True, False, True]  # filled: hurts
    assert entries(ax) == ["a that helps", "a that hurts", "b that helps", "b that hurts"]
    np.testing.assert_allclose(ax.lines[0].get_xydata() @ [0.5, 2], 0, atol=1e-12)


def test_a_third_class_is_refused():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="zip"):
        plots.two_classes(ax, torch.zeros(3, 2), torch.tensor([0, 1, 2]), "abc", torch.ones(2), ringed=(0,))


@pytest.mark.parametrize("count", [1, 2, 10])
def test_every_tangent_is_drawn_apart(count):
    x = torch.linspace(-1, 1, 5)
    _, ax = plt.subplots()
    plots.tangents(ax, x, x**2 + x, {f"slope {k}": float(k) for k in range(count)}, mark=(-0.5, "left out"))
    assert entries(ax) == ["exact", *(f"slope {k}" for k in range(count)), "left out"]
    lines = ax.lines[1 : 1 + count]
    assert [float(np.ptp(line.get_ydata())) for line in lines] == [2.0 * k for k in range(count)]
    assert len(set(looks(lines))) == count


def test_correlations_are_bars_by_row_and_column():
    table = pd.DataFrame({"old": [0.1, 0.2, 0.3], "new": [0.4, 0.5, -0.6]}, index=["a", "b", "c"])
    _, ax = plt.subplots()
    plots.correlations(ax, table, title="r")
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers}
    assert widths == {"new": [-0.6, 0.5, 0.4], "old": [0.3, 0.2, 0.1]}  # from below
    assert ax.get_xlim()[0] < -0.6
    assert [bars[0].get_hatch() for bars in ax.containers] == ["//", None]
    assert ax.get_legend() is None


def test_the_legend_of_correlations_has_the_order_of_the_bars():
    table = pd.DataFrame({"old": [0.1, 0.2], "new": [0.4, 0.5]}, index=["a", "b"])
    _, ax = plt.subplots()
    plots.correlations(ax, table, legend=True)
    legend = ax.get_legend()
    named = {text.get_text(): patch for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)}
    heights = {bars.get_label(): bars[0].get_y() for bars in ax.containers}  # of the lowest group
    assert list(named) == sorted(heights, key=heights.get, reverse=True)  # from above
    drawn = {bars.get_label(): bars[0].get_facecolor() for bars in ax.containers}
    assert {name: patch.get_facecolor() for name, patch in named.items()} == drawn


def test_correlations_refuse_a_third_column():
    table = pd.DataFrame(np.zeros((2, 3)), columns=list("abc"))
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="3 columns; bars tell two apart"):
        plots.correlations(ax, table)
    assert not ax.containers


@pytest.mark.parametrize(("size", "unit"), [(5.0, "nats"), (5e-3, "milli-nats"), (5e-6, "micro-nats"), (5e-9, "1e-9")])
def test_predictions_are_all_drawn_in_one_unit(size, unit):
    predicted = size * torch.tensor([-1.0, 0.5, 1.0])
    _, ax = plt.subplots()
    plots.predicted_against_true(ax, predicted, -predicted, title="t", truth="by hand", loss="a loss")
    assert len(ax.collections[0].get_offsets()) == 3
    assert f"change of a loss ({unit}" in ax.get_xlabel()
    assert f"by hand ({unit}" in ax.get_ylabel()


def test_damping_curves_show_every_damping_and_every_eigenvalue():
    undamped, dampings = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.1, 1.0])
    damped = torch.stack([undamped, undamped / 2])
    _, ax = plt.subplots()
    plots.damping_curves(ax, dampings, damped, undamped, -undamped, torch.tensor([0.2, 0.4, 0.6]))
    assert len(ax.lines) == 2 + 3
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 0.5], rtol=1e-6)  # float32
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1, 1], rtol=1e-6)
