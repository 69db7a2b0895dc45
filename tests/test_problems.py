"""The problems of notebooks 01 to 03, and the figures and sliders that show them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import flatten_parameters
from metasp_lite.calculus.optimum import minimise
from metasp_lite.course import plots, problems, widgets
from metasp_lite.images import sources
from metasp_lite.influence import published
from metasp_lite.influence.agreement import SignConfusion, comparison_table
from metasp_lite.influence.leaving_out import leave_one_out


@pytest.fixture(autouse=True)
def closed_figures(monkeypatch):
    """Figures stay open until the test has looked at them, and no longer."""
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def shoes():
    return problems.shoes()


@pytest.fixture(scope="module")
def small_toy():
    """The toy at a size whose training takes a moment."""
    return problems.toy(train_per_class=5, test_per_class=5, hidden=3, l2=0.1)


def test_shoes_are_sneakers_and_boots_in_equal_number_with_whitened_inputs(shoes):
    inputs, labels = shoes.objective.losses.inputs.cpu(), shoes.objective.losses.labels.cpu()
    assert shoes.train.classes == ("Sneaker", "Ankle boot")
    assert labels.bincount().tolist() == [30, 30]
    # principal components of the training set, scaled to variance one: rounding of a 784-term sum
    torch.testing.assert_close(torch.cov(inputs.T), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-10)
    whole = sources.load("fashion-mnist", "train", source="bundled")
    first_boot = whole.images[(whole.labels == whole.classes.index("Ankle boot")).nonzero()[0, 0]]
    assert torch.equal(shoes.train.images[labels == 1][0], first_boot)


def test_shoes_optimum_is_scikit_learns(shoes):
    theta = minimise(shoes.objective, shoes.start)
    losses, n = shoes.objective.losses, len(shoes.objective.losses)
    model = LogisticRegression(C=1 / (n * shoes.objective.l2), fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(losses.inputs.cpu().numpy(), losses.labels.cpu().numpy())
    # scikit-learn stops at a gradient of 1e-10 n; the smallest eigenvalue of H is 0.04
    np.testing.assert_allclose(theta.cpu(), model.coef_[0], atol=1e-6)
    share = model.score(shoes.validation.losses.inputs.cpu().numpy(), shoes.validation.losses.labels.cpu().numpy())
    assert shoes.accuracy(theta)[1] == pytest.approx(share, abs=1e-12)


def test_toy_has_the_papers_size_and_one_seed_gives_one_start():
    toy = problems.toy()
    assert (len(toy.objective.losses), len(toy.validation.losses), len(toy.start)) == (1000, 500, 6370)
    assert toy.objective.losses.labels.bincount().tolist() == [100] * 10
    assert 0 <= toy.objective.losses.inputs.min() < toy.objective.losses.inputs.max() <= 1
    assert torch.equal(toy.start, problems.toy().start)
    assert not torch.equal(toy.start, problems.toy(seed=2).start)
    assert toy.with_l2(0.5).objective.l2 == 0.5


def test_travel_touches_its_prediction_and_ends_at_leave_one_out(shoes):
    """At ε = 0 both meet; at ε = −1/n the retrained loss is what leave_one_out finds by its own route."""
    n, example = len(shoes.objective.losses), 55
    travel = widgets.travel_of_optimum(shoes, example, np.array([-1 / n, -1e-4, 0.0, 1e-4]))
    np.testing.assert_allclose(travel.optimum[2], travel.optimum_first_order[2], atol=1e-9)
    slope = (travel.optimum[3] - travel.optimum[1]) / 2e-4
    predicted = (travel.optimum_first_order[3] - travel.optimum_first_order[1]) / 2e-4
    np.testing.assert_allclose(slope, predicted, rtol=1e-4)  # a central difference with h = 1e-4
    curvature = Curvature(shoes.objective, minimise(shoes.objective, shoes.start))
    true = leave_one_out(curvature, shoes.validation, torch.tensor([example]))
    assert travel.validation[0] - travel.validation[2] == pytest.approx(true.item(), abs=1e-9)


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


def test_cost_picture_has_every_method_in_three_panels():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    path = {1: torch.tensor([-1.0, 1.0, -1.0, 1.0]), 10: exact}
    figure = plots.accuracy_against_cost(exact, {"series": path}, {"points": path}, {"level": path[1]})
    assert [ax.get_ylabel() for ax in figure.axes] == ["agreement, of 4", "balanced accuracy", "Pearson r"]
    agreement = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert agreement == {"level": [3, 3], "constant guess": [3, 3], "series": [3, 4], "points": [3, 4]}


def test_image_grid_refuses_missing_titles():
    with pytest.raises(ValueError, match="2 images and 1 titles"):
        plots.image_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ["one"])


def test_comparison_table_puts_the_constant_guess_and_the_paper_beside_ours():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0], dtype=torch.float64)
    table = comparison_table(exact, {"same": exact}, {"theirs": SignConfusion(1, 2, 3, 4)})
    assert table.loc["same", ["TP", "TN", "agreement"]].tolist() == [1, 3, 4]
    assert table.loc["same", "Pearson r"] == pytest.approx(1, abs=1e-12)
    assert table.loc["constant guess", ["agreement", "balanced accuracy"]].tolist() == [3, 0.5]
    assert table.loc["theirs (paper)", ["TP", "TN", "FP", "FN"]].tolist() == [1, 2, 3, 4]


def test_the_papers_table_6_has_1000_examples_and_670_positives_in_every_row():
    """The appendix prints totals of 1000; the positives follow from TP + FN."""
    for signs in published.TABLE_6.values():
        assert signs.total == 1000
        assert signs.true_positive + signs.false_negative == 670


@pytest.fixture(scope="module")
def two_tasks():
    return problems.two_tasks(memory=100, validation=20, batch=16)


def test_the_batch_of_two_tasks_is_half_old_and_half_new(two_tasks):
    assert two_tasks.from_memory.tolist() == [True] * 8 + [False] * 8
    assert ((two_tasks.batch[1] < 5) == two_tasks.from_memory).all()
    assert (two_tasks.old[1] < 5).all()
    assert (two_tasks.new[1] >= 5).all()
    assert [len(labels) for _, labels in (two_tasks.old, two_tasks.new)] == [20, 20]
    assert [len(labels) for _, labels in (two_tasks.old_test, two_tasks.new_test)] == [500, 500]


def test_the_images_of_two_tasks_are_its_batch(two_tasks):
    assert torch.equal(two_tasks.images.labels, two_tasks.batch[1].cpu())
    assert torch.equal(two_tasks.images.images.flatten(1).double() / 255, two_tasks.batch[0].cpu())


def test_batch_and_validation_sets_of_two_tasks_share_no_image(two_tasks):
    inputs = torch.cat([two_tasks.batch[0], two_tasks.old[0], two_tasks.new[0]])
    assert len(inputs.unique(dim=0)) == len(inputs)


def test_two_tasks_knows_both_tasks_and_carries_no_gradient_over(two_tasks):
    """Chance is a tenth; a network that only knew one task would have none of the other right."""
    for inputs, labels in (two_tasks.old_test, two_tasks.new_test):
        assert (two_tasks.model(inputs).argmax(dim=1) == labels).double().mean() > 0.5
    assert all(parameter.grad is None for parameter in two_tasks.model.parameters())


def test_two_tasks_depends_on_its_seed_alone(two_tasks):
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)
    try:
        again, other = (problems.two_tasks(memory=100, validation=20, batch=16, seed=seed) for seed in (0, 1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(flatten_parameters(again.model), flatten_parameters(two_tasks.model))
    assert torch.equal(again.new[0], two_tasks.new[0])
    assert not torch.equal(flatten_parameters(other.model), flatten_parameters(two_tasks.model))
