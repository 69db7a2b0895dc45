"""Training: what it measures, that it is the same however often it is stopped, and what stops it."""

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.made_up_streams import noise_stream, same_state
from helpers.tiny_stream import SAME, Stopped, run_on, stop_at

from metasp_lite.continual import place, training
from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.methods.base import Method
from metasp_lite.continual.methods.replay import FineTune


def copied(state: object) -> object:
    """A state that later training does not reach."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list | tuple) else state


def keep_last(kept: dict[str, object], also: Callable[..., None] | None = None) -> training.Watcher:
    def watch(learner: Learner, method: Method) -> None:
        kept["learner"], kept["method"] = copied(learner.state_dict()), copied(method.state_dict())
        if also:
            also(learner, method)

    return watch


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_after_every_epoch_ends_as_if_it_had_not_been(method, folder, stream, tmp_path):
    """Results, weights, momentum, batch-norm, generator, memory and scores: equal to the last bit."""
    run, whole, pieces = run_on(folder, method), {}, {}
    expected = training.train(run, tmp_path / "whole", stream=stream, watch=keep_last(whole))
    stops = 0
    while True:
        watch = keep_last(pieces, stop_at(2))
        try:
            found = training.train(run, tmp_path / "pieces", stream=stream, checkpoint_seconds=0, watch=watch)
            break
        except Stopped:
            stops += 1
    assert stops >= 5
    assert found["resumed"] == stops
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}
    assert same_state(pieces, whole)
    assert sorted(path.name for path in (tmp_path / "pieces").iterdir()) == ["lock", "result.json"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_in_channels_last_and_bfloat16(method, folder, stream, tmp_path):
    """To the losses of plain training, as long as rounding has not yet led it elsewhere: in its first epoch."""
    options = {"plain": {}, "moved": {"channels_last": True}, "rounded": {"channels_last": True, "bf16": True}}
    run = {name: run_on(folder, method, epochs=1, **changed) for name, changed in options.items()}
    losses = {name: training.train(run[name], tmp_path / name, stream=stream)["epoch_losses"][0] for name in options}
    assert losses["moved"] == pytest.approx(losses["plain"], rel=1e-3)  # float32, sums in another order, 5 steps
    assert losses["rounded"] == pytest.approx(losses["plain"], rel=0.1)  # 2⁻⁹ a rounding, batch-norm of 4 images


def test_the_same_seed_gives_the_same_result_and_another_does_not(folder, stream, tmp_path):
    runs = [run_on(folder, "er", seed=seed) for seed in (3, 3, 4)]
    first, again, other = (training.train(run, tmp_path / str(i), stream=stream) for i, run in enumerate(runs))
    assert {key: first[key] for key in SAME} == {key: again[key] for key in SAME}
    assert first["epoch_losses"] != other["epoch_losses"]


def test_the_global_generators_are_neither_used_nor_moved(folder, stream, tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = training.train(run_on(folder, "metasp-rehsel"), tmp_path / "a", stream=stream)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - the global generator is what is meant
    second = training.train(run_on(folder, "metasp-rehsel"), tmp_path / "b", stream=stream)
    assert first["epoch_losses"] == second["epoch_losses"]


def test_evaluation_never_changes_training(folder, stream, tmp_path):
    """A run that is scored three times more after every epoch stays the same to the last bit, batch-norm included."""

    def look(learner: Learner, _: Method) -> None:
        before = copied(learner.state_dict())
        for _ in range(3):
            training.score(learner)
        assert same_state(learner.state_dict(), before)
        assert learner.model.training

    plain, scored, run = {}, {}, run_on(folder, "metasp")
    expected = training.train(run, tmp_path / "plain", stream=stream, watch=keep_last(plain))
    found = training.train(run, tmp_path / "scored", stream=stream, watch=keep_last(scored, look))
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}
    assert same_state(scored, plain)


def test_scores_are_those_of_single_images(folder, stream, tmp_path):
    """Each test image alone through the network: among all classes seen, and among those of its task."""
    checked = []

    def check(learner: Learner, _: Method) -> None:
        if learner.epoch < 3:
            return
        network, expected = learner.model.eval(), ([], [])
        with torch.no_grad():
            for task in stream.tasks[: learner.task_number + 1]:
                right = [0, 0]
                for place in task.test.tolist():
                    image = stream.augmentation.normalise(stream.test_images[place : place + 1])
                    logits, label = network(image)[0].tolist(), int(stream.test_labels[place])
                    seen = range(2 * learner.task_number + 2)
                    own = range(label - label % 2, label - label % 2 + 2)
                    for i, classes in enumerate((seen, own)):
                        right[i] += max(classes, key=logits.__getitem__) == label
                for i in range(2):
                    expected[i].append(right[i] / len(task.test))
        network.train()
        assert training.score(learner) == expected
        checked.append(expected)

    result = training.train(run_on(folder, "er"), tmp_path, stream=stream, watch=check)
    assert [row[0] for row in checked] == [
        [value for value in row if value is not None] for row in result["accuracy_class_incremental"]
    ]
    assert any(class_incremental != task_incremental for class_incremental, task_incremental in checked)


def test_classes_of_later_tasks_are_no_answer(folder, stream):
    """A network that is sure of a class it has not met yet is scored as if it had no such class."""
    learner = Learner(stream, run_on(folder, "er").recipe, 3)
    learner.task_number = 1
    expected = training.score(learner)
    assert sum(expected[0]) > 0
    learner.model[-1].bias.data[4:] += 1000
    assert training.score(learner) == expected
    learner.model[-1].bias.data[0] += 1000  # a class it has met: it is the answer everywhere it may be
    assert training.score(learner) == ([0.5, 0.0], [0.5, expected[1][1]])


def test_a_stream_that_is_not_the_runs_own_is_refused_before_anything_is_written(folder, stream, tmp_path):
    """Its result would stand under the settings of another; the run's own may be given, made once for several."""
    run = run_on(folder, "fine-tune", epochs=1)
    for other in (run_on(folder, "fine-tune", padding=0), run_on(folder, "fine-tune", classes_per_task=3)):
        with pytest.raises(ValueError, match=r"the stream was made with .*; give streams.make\(run.stream\)"):
            training.train(other, tmp_path / "out", stream=stream)
    with pytest.raises(ValueError, match="was cut from images of its own, and the run is on"):
        training.train(run, tmp_path / "out", stream=noise_stream())
    assert not (tmp_path / "out").exists()
    assert training.train(run, tmp_path / "out", stream=stream)["steps"] == 15


def test_a_second_run_in_the_same_folder_is_refused(folder, stream, tmp_path):
    run = run_on(folder, "fine-tune")

    def again(*_: object) -> None:
        with pytest.raises(place.InUseError, match="another process trains in"):
            training.train(run, tmp_path, stream=stream)

    training.train(run, tmp_path, stream=stream, watch=again)


def test_another_process_holds_the_folder_until_it_is_killed(folder, stream, tmp_path):
    run = run_on(folder, "fine-tune")
    code = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(place.InUseError, match="wait for it, or give another folder"):
            training.train(run, tmp_path, stream=stream)
        assert not (tmp_path / "checkpoint.pt").exists()
        holder.kill()
    assert training.train(run, tmp_path, stream=stream)["resumed"] == 0


def test_a_loss_that_is_not_finite_stops_the_run(folder, stream, tmp_path):
    run = run_on(folder, "er", lr=1e30)
    message = r"the loss is (nan|inf) in task 1, epoch 1, step \d; .* a lower lr than 1e\+30 \(--set lr=1e\+29\), lower"
    with pytest.raises(FloatingPointError, match=message):
        training.train(run, tmp_path, stream=stream)
    assert not (tmp_path / "result.json").exists()


def test_a_step_that_refuses_numbers_that_are_not_finite_is_said_with_its_place_and_the_way_out(
    folder, stream, tmp_path, monkeypatch
):
    def refuse(*_: object, **__: object) -> None:
        raise FloatingPointError("an influence is nan at position 0; look for NaN")

    monkeypatch.setattr("metasp_lite.influence.metasp.metasp_step", refuse)
    for variant, more in (
        ("printed", ", or variant=official"),
        ("relative", ", or variant=official"),
        ("official", ""),
    ):
        message = rf"an influence is nan at position 0 in task 2, epoch \d, step 1; .*, lower momentum=0.9{more}$"
        with pytest.raises(FloatingPointError, match=message):
            training.train(run_on(folder, "metasp", variant=variant), tmp_path / variant, stream=stream)


def test_weights_that_the_last_step_ruins_are_neither_scored_nor_stored(folder, stream, tmp_path, monkeypatch):
    """No later loss of the task would tell."""

    class Ruined(FineTune):
        def end_task(self, learner: Learner) -> None:
            if learner.task_number == 1:
                next(learner.model.parameters()).data[:] = torch.inf

    monkeypatch.setitem(METHODS, "fine-tune", Ruined)
    with pytest.raises(FloatingPointError, match="the weights are no longer finite in task 2, epoch 3; in another"):
        training.train(run_on(folder, "fine-tune"), tmp_path, stream=stream)
    assert same_state(list(tmp_path.glob("result*")), [])
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["learner"]
    assert kept["task_number"] == 1
    assert all(bool(value.isfinite().all()) for value in kept["model"].values())


def test_the_progress_bar_names_task_epoch_loss_and_accuracy(folder, stream, tmp_path, capsys):
    training.train(run_on(folder, "fine-tune"), tmp_path, stream=stream, progress_bar=True)
    shown = capsys.readouterr().err
    assert all(f"{name}=" in shown for name in ("task", "epoch", "loss", "accuracy"))
    assert "9/9" in shown


def test_the_progress_bar_of_a_run_that_goes_on_begins_where_it_stopped(folder, stream, tmp_path, capsys):
    run = run_on(folder, "fine-tune")
    with pytest.raises(Stopped):
        training.train(run, tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(5))
    training.train(run, tmp_path, stream=stream, progress_bar=True)
    shown = capsys.readouterr().err
    assert "| 4/9 " in shown
    assert "| 9/9 " in shown
    assert "| 3/9 " not in shown


def test_a_task_is_begun_and_ended_once_with_the_learner_in_it(folder, stream, tmp_path, monkeypatch):
    seen = []

    class Watched(FineTune):
        def begin_task(self, learner: Learner) -> None:
            seen.append(("begin", learner.task_number, learner.epoch))

        def end_task(self, learner: Learner) -> None:
            seen.append(("end", learner.task_number, learner.epoch))

    monkeypatch.setitem(METHODS, "fine-tune", Watched)
    training.train(run_on(folder, "fine-tune"), tmp_path, stream=stream)
    assert seen == [each for number in range(3) for each in (("begin", number, 0), ("end", number, 3))]


def test_what_a_recipe_does_not_have_is_no_way_out(folder, stream, tmp_path):
    run = run_on(folder, "er", lr=1e30, weight_decay=0.0, momentum=0.0)
    with pytest.raises(FloatingPointError) as caught:
        training.train(run, tmp_path, stream=stream)
    assert str(caught.value).endswith("try a lower lr than 1e+30 (--set lr=1e+29)")


def test_the_seconds_of_a_task_are_those_of_all_its_parts(folder, stream, tmp_path, monkeypatch):
    """Its beginning, three epochs and its end, on a clock that goes on by one whenever it is read."""
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=count().__next__, monotonic=lambda: 0.0))
    assert training.train(run_on(folder, "fine-tune"), tmp_path, stream=stream)["seconds_per_task"] == [5.0] * 3
