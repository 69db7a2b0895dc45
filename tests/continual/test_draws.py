"""Draws: arms of a comparison from one seed see the same, whatever each of them draws beside it."""

import pytest
import torch
from helpers.made_up_streams import follow, noise_stream, same_state
from scipy import stats

from metasp_lite.continual import methods
from metasp_lite.continual.draws import Draws
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.metasp import MetaSP, MetaSPSettings
from metasp_lite.continual.methods.replay import ERLate, LateSettings

PURPOSES = ("order", "crops", "memory", "replays", "validation", "storing", "own")


def test_a_seed_decides_all_draws_and_no_two_purposes_or_seeds_share_them():
    taken = {
        (seed, name): torch.rand(20, generator=getattr(Draws.of(seed), name))
        for seed in (0, 1, 2**62)
        for name in PURPOSES
    }
    assert len({tuple(values.tolist()) for values in taken.values()}) == len(taken)
    for (seed, name), values in taken.items():
        assert torch.equal(torch.rand(20, generator=getattr(Draws.of(seed), name)), values)


def test_purposes_are_independent_over_seeds():
    """The first draws of two purposes, from 300 seeds: no more related than chance lets them be, one time in 10,000."""
    first = {
        name: [float(torch.rand((), generator=getattr(Draws.of(s), name))) for s in range(300)] for name in PURPOSES
    }
    for i, one in enumerate(PURPOSES):
        assert stats.kstest(first[one], "uniform").pvalue > 1e-4
        for other in PURPOSES[i + 1 :]:
            assert stats.pearsonr(first[one], first[other]).pvalue > 1e-4


def test_what_was_stored_goes_on_as_it_would_have():
    draws, other = Draws.of(5), Draws.of(6)
    for name in PURPOSES[::2]:
        torch.rand(3, generator=getattr(draws, name))
    other.load_state_dict(draws.state_dict())
    for name in PURPOSES:
        assert torch.equal(*(torch.rand(9, generator=getattr(each, name)) for each in (draws, other)))


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
@pytest.mark.parametrize("batch", [7, 8])
def test_metasp_with_all_weights_equal_is_er_late_bit_for_bit(network, batch):
    """Weights, momentum, running averages, memory and every draw but the validation sets'; n = 12, 13 and 11, 9."""
    stream, ends = noise_stream(), []
    recipe = Recipe(network, 3, batch=batch, lr=0.05, momentum=0.5, weight_decay=0.01)
    shared = {"memory": 12, "memory_batch": 5, "late_epochs": 2}
    arms = [(ERLate, LateSettings(**shared)), (MetaSP, MetaSPSettings(**shared, variant="dosed", dose=0.0))]
    for kind, chosen in arms:
        learner = Learner(stream, recipe, seed=2)
        method = kind(learner, chosen)
        follow(learner, method)
        state = {**learner.state_dict(), "buffer": method.buffer.state_dict()}
        state["buffer"].pop("columns")
        validation = state["draws"].pop("validation")
        ends.append(state)
    assert same_state(*ends)
    assert not torch.equal(validation, Draws.of(2).validation.get_state())  # MetaSP did draw them


def test_permuted_weights_leave_every_other_draw_alone():
    stream, ends = noise_stream(), []
    for permuted in (False, True):
        learner = Learner(stream, Recipe("lite-cnn", 2, batch=7, lr=0.05), seed=2)
        chosen = MetaSPSettings(memory=12, memory_batch=5, late_epochs=1, validation=4, permuted=permuted)
        follow(learner, MetaSP(learner, chosen))
        ends.append(learner.state_dict())
    (mine, its) = (end["draws"] for end in ends)
    assert {name for name in mine if not torch.equal(mine[name], its[name])} == {"own"}
    assert not same_state(ends[0]["model"], ends[1]["model"])


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in ("joint", "gdumb", "fine-tune")])
def test_every_method_sees_the_batches_and_crops_that_fine_tuning_sees(name):
    """All but joint training and GDumb, which train on other examples."""
    stream, seen = noise_stream(), []
    for kind in (methods.METHODS["fine-tune"], methods.METHODS[name]):
        learner = Learner(stream, Recipe("mlp", 2, batch=7, lr=0.01), seed=2)
        method = kind(learner, kind.Settings())
        taken, fetch = [], learner.batch
        learner.batch = lambda index, fetch=fetch, taken=taken: taken.append(fetch(index)) or taken[-1]
        follow(learner, method)
        seen.append(taken)
    assert same_state(*([tuple(batch) for batch in taken] for taken in seen))
