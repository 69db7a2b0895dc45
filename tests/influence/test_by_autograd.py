"""Influences by plain autograd against real runs of torch.optim.SGD; what the oracle leaves alone and refuses."""

import copy

import pytest
import torch
from helpers.metasp_learners import (
    BATCH,
    NEW,
    OLD,
    RULES,
    assert_close,
    assert_identical,
    by_finite_differences,
    cnn,
    cnn_with_batch_norm,
    learner,
    loss_after,
    plain_step,
    resnet,
    snapshot,
)

from metasp_lite.calculus.losses import cross_entropy
from metasp_lite.influence.by_autograd import influences_by_autograd


@pytest.mark.parametrize("network", [cnn_with_batch_norm, resnet])
def test_the_oracle_agrees_with_real_runs(network):
    """Where the matrix above trusts it.  With ReLU the weights must move less, lest a unit crosses its kink."""
    begin = learner(network, RULES["nesterov"])
    influences, losses = influences_by_autograd(*begin, BATCH, OLD, NEW, pseudo_steps=2)
    for influence, loss, validation in zip(influences, losses, (OLD, NEW), strict=True):
        assert_close(influence, by_finite_differences(begin, validation, steps=2, width=1e-5), share=1e-6)
        assert float(loss) == pytest.approx(loss_after(begin, torch.full((8,), 1 / 8).double(), validation, 2))


def test_the_oracle_changes_nothing():
    model, optimizer = learner(cnn_with_batch_norm, RULES["nesterov"], warm=False)
    before = snapshot(model, optimizer)
    influences_by_autograd(model, optimizer, BATCH, OLD, NEW, pseudo_steps=2)
    assert_identical(snapshot(model, optimizer), before)


def test_the_oracle_leaves_frozen_parameters_where_they_are():
    """Against a difference quotient: the loss of OLD after a plain step of the last layer, in a weight of the batch."""
    model, _ = learner(cnn, RULES["SGD"])
    for parameter in model[:-1].parameters():
        parameter.requires_grad_(False)
    last = list(model[-1].parameters())
    optimizer = torch.optim.SGD(last, lr=0.1)

    def after(weight):
        weights = torch.full((len(BATCH[1]),), 1 / len(BATCH[1]), dtype=torch.float64)
        weights[2] *= 1 + weight
        moved = copy.deepcopy(model)
        plain_step(moved, torch.optim.SGD(moved[-1].parameters(), lr=0.1), BATCH, weights)
        with torch.no_grad():
            return cross_entropy(moved(OLD[0]), OLD[1]).mean()

    (influence,), _ = influences_by_autograd(model, optimizer, BATCH, OLD)
    quotient = (after(1e-4) - after(-1e-4)) / 2e-4
    torch.testing.assert_close(influence[2], quotient, rtol=1e-6, atol=0)  # second differences of 1e-8, rounding 1e-12


def test_the_oracle_frees_its_graph_with_the_last_validation_set(monkeypatch):
    """The benchmark compares memory: a rival that kept its graph to the end would be an easy one."""
    kept, original = [], torch.autograd.grad

    def recorded(*given, **settings):
        kept.append(settings.get("retain_graph"))
        return original(*given, **settings)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    influences_by_autograd(*learner(cnn, RULES["SGD"]), BATCH, OLD, NEW)
    assert kept == [None, True, False]  # the step's gradient, then one for each set


@pytest.mark.parametrize(
    ("groups", "steps", "settings"), [(2, 1, {}), (1, 0, {}), (1, 1, {"dampening": 0.5}), (1, 1, {"maximize": True})]
)
def test_the_oracle_refuses_what_it_does_not_follow(groups, steps, settings):
    model, _ = learner(cnn, RULES["SGD"])
    parameters = list(model.parameters())
    lists = [parameters] if groups == 1 else [parameters[:2], parameters[2:]]
    optimizer = torch.optim.SGD([{"params": each} for each in lists], lr=0.1, **settings)
    with pytest.raises(ValueError, match=r"parameter groups and pseudo_steps|is not followed by a pseudo-update"):
        influences_by_autograd(model, optimizer, BATCH, OLD, pseudo_steps=steps)
