"""A run: what it measures, that it is the same however often it is stopped, and what it refuses."""

import errno
import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_stream import Stopped, arguments_of, make_folder, run_on
from PIL import Image

from metasp_lite import files, results
from metasp_lite.continual import checkpoint, streams, training
from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.methods.base import Method
from metasp_lite.continual.methods.replay import FineTune

SAME = ("run", "accuracy_class_incremental", "accuracy_task_incremental", "epoch_losses", "steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stream(folder) -> streams.Stream:
    return streams.make(run_on(folder, "fine-tune").stream)


def stop_at(epoch: int) -> training.Watcher:
    """Raise after so many epochs, before they are stored."""
    seen = []

    def watch(*_: object) -> None:
        seen.append(1)
        if len(seen) == epoch:
            raise Stopped

    return watch


def same(a: object, b: object) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


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
    assert same(pieces, whole)
    assert sorted(path.name for path in (tmp_path / "pieces").iterdir()) == ["lock", "result.json"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_in_channels_last_and_bfloat16(method, folder, stream, tmp_path):
    """To the losses of plain training, as long as rounding has not yet led it elsewhere: in its first epoch."""
    options = {"plain": {}, "moved": {"channels_last": True}, "rounded": {"channels_last": True, "bf16": True}}
    run = {name: run_on(folder, method, epochs=1, **changed) for name, changed in options.items()}
    losses = {name: training.train(run[name], tmp_path / name, stream=stream)["epoch_losses"][0] for name in options}
    assert losses["moved"] == pytest.approx(losses["plain"], rel=1e-3)  # float32, sums in another order, 5 steps
    assert losses["rounded"] == pytest.approx(losses["plain"], rel=0.1)  # 2⁻⁹ a rounding, batch-norm of 4 images


def test_a_process_killed_at_random_moments_ends_as_if_it_had_not_been(folder, tmp_path):
    """SIGKILL wherever it happens to fall: in a step, in a score, in the writing of a checkpoint."""
    script, whole, killed = (
        Path(__file__).parent / "helpers" / "kill_at_random.py",
        tmp_path / "whole",
        tmp_path / "killed",
    )
    command = [*arguments_of(folder, "metasp-rehsel", epochs=5), "--checkpoint-seconds", "0"]
    done = subprocess.run(
        [sys.executable, script, "1", whole, killed, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # CUDA does not survive a fork
    )
    assert done.returncode == 0, done.stderr
    count = int(done.stdout.split()[-1])  # at least three: the script sees to it
    expected, found = (json.loads((out / "result.json").read_text()) for out in (whole, killed))
    assert 1 <= found["resumed"] <= count
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(folder, stream, tmp_path, monkeypatch):
    run, path = run_on(folder, "er"), tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        training.train(run, tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(3))
    before = path.read_bytes()

    def half(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", half)
        with pytest.raises(Stopped):
            training.train(run, tmp_path, stream=stream, checkpoint_seconds=0)
    assert path.read_bytes() == before
    (tmp_path / f".checkpoint.pt.{'0' * 32}.part").write_bytes(b"half")  # what a real kill would have left
    training.train(run, tmp_path, stream=stream, checkpoint_seconds=0)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "result.json"]


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
        assert same(learner.state_dict(), before)
        assert learner.model.training

    plain, scored, run = {}, {}, run_on(folder, "metasp")
    expected = training.train(run, tmp_path / "plain", stream=stream, watch=keep_last(plain))
    found = training.train(run, tmp_path / "scored", stream=stream, watch=keep_last(scored, look))
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}
    assert same(scored, plain)


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


def test_a_result_holds_what_is_needed_to_read_and_repeat_it(folder, stream, tmp_path):
    returned = training.train(run_on(folder, "er-late"), tmp_path, stream=stream)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored == returned
    for setting in ("class_incremental", "task_incremental"):
        rows = stored[f"accuracy_{setting}"]
        assert [[value is None for value in row] for row in rows] == [[k > t for k in range(3)] for t in range(3)]
        a = np.array(rows, dtype=float)  # None becomes NaN
        assert stored[setting]["a1"] == pytest.approx(np.diag(a).mean())
        assert stored[setting]["a_inf"] == pytest.approx(a[-1].mean())
        assert stored[setting]["a_m"] == pytest.approx(np.mean([np.nanmean(row) for row in a]))
        assert stored[setting]["bwt"] == pytest.approx((a[-1] - np.diag(a))[:-1].mean())
    assert stored["steps"] == 3 * 3 * 5  # tasks, epochs, batches of 4 out of 20 examples
    assert len(stored["epoch_losses"]) == 9
    assert len(stored["seconds_per_task"]) == 3
    assert sum(stored["seconds_per_task"]) == pytest.approx(stored["wall_seconds"], abs=0.01)  # rounded
    assert stored["steps_per_second"] == pytest.approx(45 / stored["wall_seconds"], rel=0.02)  # rounded
    assert stored["peak_memory_mib"] > 50  # torch alone is more
    assert stored["run"]["recipe"]["momentum"] == 0.9
    assert stored["run"]["settings"] == {"memory": 12, "memory_batch": 4, "late_epochs": 5}
    for origin in (stored["begun_with"], stored["obtained_with"]):
        assert origin["commit"]
        assert origin["versions"]["torch"]


def test_joint_training_has_scores_after_the_last_task_only(folder, stream, tmp_path):
    result = training.train(run_on(folder, "joint"), tmp_path, stream=stream)
    assert result["accuracy_class_incremental"][:2] == [[None] * 3] * 2
    assert None not in result["accuracy_class_incremental"][2]
    assert result["class_incremental"]["a_inf"] is not None
    assert result["class_incremental"]["a1"] is result["class_incremental"]["bwt"] is None
    assert result["steps"] == 3 * 15  # one task's epochs over all 60 examples


def test_a_finished_run_is_returned_without_training(folder, stream, tmp_path):
    run = run_on(folder, "fine-tune")
    first = training.train(run, tmp_path, stream=stream)
    assert training.train(run, tmp_path, watch=stop_at(1)) == first
    with pytest.raises(ValueError, match=r"result.json is of another run \(recipe.lr is 0.02 there and 0.1 here\)"):
        training.train(run_on(folder, "fine-tune", lr=0.1), tmp_path)
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"result\.json is not the result of a run"):
        training.train(run, tmp_path)


def test_a_second_run_in_the_same_folder_is_refused(folder, stream, tmp_path):
    run = run_on(folder, "fine-tune")

    def again(*_: object) -> None:
        with pytest.raises(training.InUseError, match="another process trains in"):
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
        with pytest.raises(training.InUseError, match="wait for it, or give another folder"):
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

    monkeypatch.setattr("metasp_lite.metasp.metasp_step", refuse)
    for variant, more in (("paper", ", or variant=official"), ("official", "")):
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
    assert same(list(tmp_path.glob("result*")), [])
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["learner"]
    assert kept["task_number"] == 1
    assert all(bool(value.isfinite().all()) for value in kept["model"].values())


@pytest.fixture
def begun(folder, stream, tmp_path) -> Path:
    """The folder of a run that was stopped in its second task."""
    with pytest.raises(Stopped):
        training.train(run_on(folder, "er"), tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(5))
    return tmp_path


def full_disk(descriptor: int) -> None:
    os.ftruncate(descriptor, 100)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint(folder, stream, begun, tmp_path_factory, monkeypatch):
    run, before = run_on(folder, "er"), (begun / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt \(No space left on device\); make room"):
            training.train(run, begun, stream=stream, checkpoint_seconds=0)
    assert (begun / "checkpoint.pt").read_bytes() == before
    expected = training.train(run, tmp_path_factory.mktemp("whole"), stream=stream)
    found = training.train(run, begun, stream=stream)
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}


def test_a_file_that_the_system_refuses_to_let_grow_keeps_the_last_checkpoint(folder, stream, begun):
    """The kernel's own error in the middle of a write, by a limit on the size of files."""
    path, (soft, hard) = begun / "checkpoint.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        with pytest.raises(OSError, match="File too large"):
            training.train(run_on(folder, "er"), begun, stream=stream, checkpoint_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert not list(begun.glob(".*part"))


def test_a_result_that_cannot_be_written_is_written_by_the_next_start(folder, stream, tmp_path, monkeypatch):
    run, original = run_on(folder, "er"), files.write_atomically

    def full(path: Path, content: str | bytes) -> None:
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            training.train(run, tmp_path, stream=stream)
    assert training.train(run, tmp_path, stream=stream, watch=stop_at(1))["steps"] == 45


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "another program's"])
def test_a_damaged_checkpoint_is_refused_and_stays(damage, folder, stream, begun):
    path = begun / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
    else:
        torch.save({"weight": torch.zeros(3)}, path)
        content = bytearray(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged, or no checkpoint of this program; restore it"):
        training.train(run_on(folder, "er"), begun, stream=stream)
    assert path.read_bytes() == content


def test_a_checkpoint_cannot_run_code(folder, stream, begun, tmp_path):
    """A file with the right checksum, in whose pickle there is a call."""
    witness = tmp_path / "witness"

    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(witness),)

    checkpoint.save(begun / "checkpoint.pt", run_on(folder, "er").as_dict(), {"learner": Call()})
    assert pickle.dumps(Call())
    with pytest.raises(ValueError, match="is no checkpoint of this program"):
        training.train(run_on(folder, "er"), begun, stream=stream)
    assert not witness.exists()


def test_another_runs_checkpoint_is_refused_by_the_names_of_what_differs(folder, stream, begun, monkeypatch):
    before = (begun / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"another run \(recipe.lr is 0.02 there and 0.1 here; seed is 3 there and 4"):
        training.train(run_on(folder, "er", seed=4, lr=0.1), begun, stream=stream)
    with pytest.raises(ValueError, match=r"settings\.late_epochs is None there and 5 here"):
        training.train(run_on(folder, "er-late"), begun, stream=stream)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(ValueError, match="has format 1, this version reads 2"):
        training.train(run_on(folder, "er"), begun, stream=stream)
    assert (begun / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_does_not_go_on_with_other_images(tmp_path):
    """The settings are the same, but one picture was replaced meanwhile."""
    folder = make_folder(tmp_path / "images")
    run = run_on(folder, "er")
    with pytest.raises(Stopped):
        training.train(run, tmp_path / "out", checkpoint_seconds=0, watch=stop_at(2))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "train" / "class0" / "00.png")
    with pytest.raises(ValueError, match=r"images\.sum is "):
        training.train(run, tmp_path / "out")


def test_the_progress_bar_names_task_epoch_loss_and_accuracy(folder, stream, tmp_path, capsys):
    training.train(run_on(folder, "fine-tune"), tmp_path, stream=stream, progress_bar=True)
    shown = capsys.readouterr().err
    assert all(f"{name}=" in shown for name in ("task", "epoch", "loss", "accuracy"))
    assert "9/9" in shown
