"""The problems of notebooks 01, 02 and 05."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.course import problems
from metasp_lite.images import sources


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


def test_toy_with_pooling_sees_means_of_squares_of_pixels():
    plain, pooled = problems.toy(), problems.toy(pooling=2)
    assert len(pooled.start) == 8 * (14 * 14 + 1) + 10 * 9
    for seen, whole in ((pooled.objective, plain.objective), (pooled.validation, plain.validation)):
        squares = whole.losses.inputs.view(-1, 14, 2, 14, 2)
        torch.testing.assert_close(seen.losses.inputs, squares.mean(dim=(2, 4)).flatten(1))
        assert torch.equal(seen.losses.labels, whole.losses.labels)
    with pytest.raises(ValueError, match="pooling=3 does not divide the side of 28 pixels"):
        problems.toy(pooling=3)


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


def test_two_tasks_keeps_the_network_as_it_was_before_the_new_task(two_tasks):
    """It has never seen a label above 4, so it has learnt to give none."""
    right = [
        (two_tasks.after_old(inputs).argmax(dim=1) == labels).double().mean()
        for inputs, labels in (two_tasks.old_test, two_tasks.new_test)
    ]
    assert right[0] > 0.5
    assert right[1] == 0
    assert not torch.equal(flatten_parameters(two_tasks.after_old), flatten_parameters(two_tasks.model))


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
