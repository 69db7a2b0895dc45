"""The two-stage problems of notebook 06, its picker, and the command that stores its studies."""

import json
import os
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch

from metasp_lite import __main__, plots, settings, stage_studies, widgets
from metasp_lite.functional import Curvature
from metasp_lite.solvers import Exact
from metasp_lite.stage_problems import SETUPS, Setup, TwoStages
from metasp_lite.stages import fixed_embedding

SMALL = Setup(first=(0, 1), second=(5, 7, 9), first_per_class=12, second_per_class=10, test_per_class=2, l2=0.1)


@pytest.fixture(scope="module")
def small():
    """A problem that trains in a second: a few images, so much regularisation that it has one optimum."""
    problem = TwoStages(SMALL)
    pretrained = problem.pretrained()
    return problem, pretrained, problem.finetuned(pretrained.theta)


def test_images_are_those_of_the_classes_in_order_and_no_test_image_is_trained_on():
    problem = TwoStages(replace(SMALL, skip=3))
    images = problem.pretraining_images
    assert images.classes == ("T-shirt/top", "Trouser")
    assert images.labels.tolist() == [0] * 12 + [1] * 12
    assert problem.test_images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(TwoStages(SMALL).pretraining_images.images[3:12], images.images[:9])  # three passed over
    train = {tuple(image.flatten().tolist()) for image in problem.finetuning_images.images}
    assert not train & {tuple(image.flatten().tolist()) for image in problem.test_images.images}


def test_a_setup_that_asks_for_more_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"class 'Trouser' of .* has too few train images for 12 after the first 995"):
        _ = TwoStages(replace(SMALL, first=(1, 0), skip=995)).pretraining_images


def test_both_stages_start_from_the_seed_and_share_the_embedding(small):
    problem, pretrained, finetuned = small
    w = problem.embedding
    assert w == 2 * 25 + 2 + 4 * 2 * 25 + 4  # two convolutions of 5×5, a sixteenth of 32 and 64 filters
    assert len(problem.first_start) == w + 2 * (36 + 1)  # 14 → 7 → 3 pixels, four filters
    assert len(problem.head_start) == 3 * (36 + 1)
    assert torch.equal(pretrained.theta[:w], finetuned.theta[:w])
    assert not torch.equal(TwoStages(replace(SMALL, seed=1)).first_start, problem.first_start)


def test_both_stages_end_in_an_optimum(small):
    problem, pretrained, finetuned = small
    assert pretrained.gradient.norm() < 1e-9
    assert finetuned.gradient[problem.embedding :].norm() < 1e-9  # the head's; the embedding is not trained
    assert finetuned.gradient[: problem.embedding].norm() > 1e-3


def test_the_ablations_keep_the_exact_score_and_spoil_the_others(small):
    problem, pretrained, finetuned = small
    scores = stage_studies.ablations(problem, pretrained, finetuned)
    exact = scores.pop("both Hessians")
    assert torch.equal(exact, fixed_embedding(pretrained, finetuned, problem.test, Exact()))
    for name, score in scores.items():
        assert score.shape == exact.shape
        assert (score - exact).norm() > 0.01 * exact.norm(), name


def test_an_unconverged_first_stage_is_damped_no_more_than_it_needs(monkeypatch):
    """Early in training G'' has negative eigenvalues; the score must still come out, with a damping that helps."""
    problem, tried = TwoStages(replace(SMALL, l2=0.001, width=32)), []
    original = Curvature.__init__

    def spy(self, objective, theta, damping=0.0):
        if objective is problem.pretraining:
            tried.append(damping)
        original(self, objective, theta, damping)

    monkeypatch.setattr(Curvature, "__init__", spy)
    assert stage_studies._unconverged(problem, 20).isfinite().all()
    refused, taken = tried[-2:]
    assert tried[:2] == [0.0, 1e-3]
    there = Curvature(problem.pretraining, stage_studies.adam(problem.pretraining, problem.first_start, 20))
    assert refused < -there.smallest_eigenvalue < taken


def test_the_picker_shows_the_most_helpful_and_the_most_harmful_images(small, monkeypatch):
    problem, _, _ = small
    monkeypatch.setattr(plt, "show", lambda: None)
    drawn = []
    monkeypatch.setattr(plots, "image_grid", lambda images, titles, **_: drawn.append((images, titles)))
    scores = torch.arange(6 * 24.0).view(6, 24).flip(1)  # the last image has the lowest influence
    widget, draw = widgets.pretraining_explorer(problem, scores)
    assert isinstance(widget.children[0], ipywidgets.Dropdown)
    assert len(widget.children[0].options) == 6
    draw(4)
    images, titles = drawn[-1]
    first = problem.pretraining_images.images
    assert torch.equal(images[0], problem.test_images.images[4])
    assert torch.equal(images[1:7], first[-6:].flip(0))
    assert torch.equal(images[8:], first[:6])
    assert titles[0] == titles[7] == "test image:\nAnkle boot"
    assert titles[1] == "Trouser\n+96"


def test_the_command_stores_each_study_and_refuses_one_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(stage_studies, "OUT", tmp_path)
    monkeypatch.setattr(stage_studies.settings, "PROJECT_DIR", tmp_path)
    monkeypatch.setitem(stage_studies.STUDIES, "tasks", lambda name: {"data": name})
    threads = torch.get_num_threads()
    assert __main__.main(["stages", "tasks", "--data", "mnist"]) == 0
    torch.set_num_threads(threads)
    stored = json.loads((tmp_path / "tasks-mnist.json").read_text())
    assert stored["data"] == "mnist"
    assert "commit" in stored["obtained_with"]
    assert __main__.main(["stages", "more"]) == 1
    assert "there is no study 'more'; choose from leave-one-out, tasks" in capsys.readouterr().err


def test_every_study_finishes_on_a_small_problem_and_says_what_it_measured(monkeypatch):
    """Numbers are the notebook's business; here every route runs, and each score predicts its own truth."""
    easy = replace(SMALL, first=(0, 5), first_per_class=60, second_per_class=20, l2=0.06)
    monkeypatch.setitem(SETUPS, "fashion-mnist", easy)
    monkeypatch.setattr(TwoStages, "left_out", lambda self: torch.arange(0, 60, 10))
    found = stage_studies.updated("fashion-mnist", alpha=0.3, steps=5)
    # leaving out one of 120 is a large step: no more than a clear agreement can be asked for
    assert min(found["r_own"].values()) > 0.8
    assert found["r_real"]["unrolled"] == found["r_own"]["unrolled"]
    one = stage_studies.leave_one_out("fashion-mnist")
    assert one["r"] > 0.8
    assert one["r_tenth_of_weight"] > 0.999
    assert len(one["true"]) == len(one["predicted"]) == 6
    assert one["cost"]["share_per_thousand"] > 0
    assert set(one["r_by_truth"]) > {"retrained to the optimum"}


def test_the_study_of_optima_tells_a_minimum_from_what_is_none(monkeypatch):
    monkeypatch.setitem(SETUPS, "fashion-mnist", replace(SMALL, first=(0, 5), first_per_class=60, l2=0.06, width=32))
    rows = {row["variant"]: row for row in stage_studies.optima("fashion-mnist")["rows"]}
    here = rows["as in the notebook"]
    assert here["gradient_norm"] < 1e-5  # L-BFGS stops at 1e-7 of each of a few hundred entries
    assert here["not_positive"] == 0
    problem = TwoStages(Setup(**here["setup"]))
    theta = stage_studies.minimise(problem.pretraining, problem.first_start, adam_steps=400)
    spectrum = torch.linalg.eigvalsh(torch.func.hessian(problem.pretraining)(theta))
    assert here["eigenvalues"] == pytest.approx([float(spectrum[0]), float(spectrum[-1])], rel=1e-3)  # at 1e-5 from θ̂
    assert rows["maxima"]["setup"]["pooling"] == "maxima"
    assert rows["maxima"]["loss"] != here["loss"]
    assert rows["a tenth of the penalty"]["loss"] < here["loss"]
    for row in rows.values():
        assert (row["not_positive"] > 0) == (row["eigenvalues"][0] <= 0), row["variant"]


def test_pooling_is_by_averages_or_maxima():
    for pooling, layer in (("averages", torch.nn.AvgPool2d), ("maxima", torch.nn.MaxPool2d)):
        embedding = TwoStages(replace(SMALL, pooling=pooling)).pretraining.losses.model.embedding
        assert sum(isinstance(each, layer) for each in embedding) == 2


@pytest.mark.skipif("METASP_DATA" not in os.environ, reason="METASP_DATA names no folder of real images")
def test_cifar_is_birds_and_frogs_and_then_the_other_eight():
    if not (settings.data_dir() / "cifar10").is_dir():
        pytest.skip(f"METASP_DATA has no folder cifar10: {settings.data_dir()}")
    problem = TwoStages(SETUPS["cifar10"])
    assert problem.pretraining_images.classes == ("bird", "frog")
    assert set(problem.finetuning_images.classes) == {
        "airplane", "automobile", "cat", "deer", "dog", "horse", "ship", "truck"
    }  # fmt: skip
    assert problem.pretraining.losses.inputs.shape == (1000, 3, 14, 14)
    unrelated = TwoStages(replace(SETUPS["cifar10"], second=stage_studies.TASKS["cifar10"][1], second_per_class=5))
    assert unrelated.finetuning_images.classes == ("automobile", "deer")  # the paper's
