"""The two-stage problems of notebooks 08 and 09: which images, which start, and both optima."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_sets import link_first
from helpers.small_stages import SMALL_STAGES, small_stages
from PIL import Image

from metasp_lite.calculus import minimise
from metasp_lite.course.two_stages import SETUPS, TwoStages
from metasp_lite.studies import multi_stage


def test_images_are_those_of_the_classes_in_order_and_no_test_image_is_trained_on():
    problem = TwoStages(replace(SMALL_STAGES, skip=3))
    images = problem.pretraining_images
    assert images.classes == ("T-shirt/top", "Trouser")
    assert images.labels.tolist() == [0] * 12 + [1] * 12
    assert problem.test_images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(TwoStages(SMALL_STAGES).pretraining_images.images[3:12], images.images[:9])  # three passed over
    train = {tuple(image.flatten().tolist()) for image in problem.finetuning_images.images}
    assert not train & {tuple(image.flatten().tolist()) for image in problem.test_images.images}


def test_the_originals_are_the_same_images_before_they_were_made_smaller():
    problem = TwoStages(replace(SMALL_STAGES, skip=3))
    for original, small in zip(problem.originals, (problem.pretraining_images, problem.test_images), strict=True):
        assert original.shape == (len(small), 1, 28, 28)
        for large, seen in zip(original, small.images, strict=True):
            resized = Image.fromarray(large[0].numpy()).resize((14, 14), Image.Resampling.BILINEAR)
            assert np.array_equal(resized, seen[0])


def test_a_setup_that_asks_for_more_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"class 'Trouser' of .* has too few train images for 12 after the first 995"):
        _ = TwoStages(replace(SMALL_STAGES, first=(1, 0), skip=995)).pretraining_images


def test_both_stages_start_from_the_seed_and_share_the_embedding():
    problem, pretrained, finetuned = small_stages()
    w = problem.embedding
    assert w == 1 * 25 + 1 + 2 * 1 * 25 + 2  # two convolutions of 5×5, a thirty-second of 32 and 64 filters
    assert len(problem.first_start) == w + 2 * (18 + 1)  # 14 → 7 → 3 pixels, two filters
    assert len(problem.head_start) == 3 * (18 + 1)
    assert torch.equal(pretrained.theta[:w], finetuned.theta[:w])
    assert not torch.equal(TwoStages(replace(SMALL_STAGES, seed=1)).first_start, problem.first_start)


def test_both_stages_end_in_an_optimum():
    problem, pretrained, finetuned = small_stages()
    assert pretrained.gradient.norm() < 1e-9
    assert finetuned.gradient[problem.embedding :].norm() < 1e-9  # the head's; the embedding is not trained
    assert finetuned.gradient[: problem.embedding].norm() > 1e-3


def test_newton_steps_end_where_l_bfgs_alone_was_heading():
    problem, pretrained, _ = small_stages()
    theta = minimise(problem.pretraining, problem.first_start, adam_steps=400)
    # a gradient of 1e-9 at the smallest eigenvalue, which is not far below the penalty of 0.1
    torch.testing.assert_close(pretrained.theta, theta, rtol=0, atol=1e-7)


def test_pooling_is_by_averages_or_maxima():
    for pooling, layer in (("averages", torch.nn.AvgPool2d), ("maxima", torch.nn.MaxPool2d)):
        embedding = TwoStages(replace(SMALL_STAGES, pooling=pooling)).pretraining.losses.model.embedding
        assert sum(isinstance(each, layer) for each in embedding) == 2


def test_cifar_is_birds_and_frogs_and_then_the_other_eight(tmp_path, monkeypatch):
    whole = Path(os.environ.get("METASP_DATA") or "/nowhere").absolute() / "cifar10"
    if not whole.is_dir():
        pytest.skip("needs METASP_DATA with the image folder cifar10")
    link_first(whole, tmp_path / "data" / "cifar10", train=500, test=3)
    monkeypatch.setenv("METASP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METASP_CACHE", str(tmp_path / "cache"))
    problem = TwoStages(SETUPS["cifar10"])
    assert problem.pretraining_images.classes == ("bird", "frog")
    assert set(problem.finetuning_images.classes) == {
        "airplane", "automobile", "cat", "deer", "dog", "horse", "ship", "truck"
    }  # fmt: skip
    assert problem.pretraining.losses.inputs.shape == (1000, 3, 14, 14)
    other = multi_stage.TASKS["cifar10"].unrelated
    unrelated = TwoStages(replace(SETUPS["cifar10"], second=other, second_per_class=5))
    assert unrelated.finetuning_images.classes == ("automobile", "deer")  # the paper's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "avg"}, "pooling='avg': choose from averages, maxima"),
        ({"network": "alexnet"}, "network='alexnet': choose from mnist, cifar"),
        ({"first": (0, 0)}, r"first=\(0, 0\): give two or more different classes"),
        ({"second": (3,)}, r"second=\(3,\): give two or more different classes"),
        ({"first": (0, 12)}, r"classes \(0, 12\): fashion-mnist has those from 0 to 9"),
    ],
    ids=str,
)
def test_a_setup_without_a_problem_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _ = TwoStages(replace(SMALL_STAGES, **change)).pretraining_images
