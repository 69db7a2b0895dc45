"""Files damaged at random, of every kind that is read: refused with a sentence or recovered, never silently used."""

import tomllib

import pytest
from helpers.faults import damage, draw_of, hold, judge, mend, state_of, trials
from helpers.image_sets import make_tree, write_fashion
from helpers.tiny_stream import Stopped, run_on, stop_at

from metasp_lite import results, settings
from metasp_lite.continual import plan, training
from metasp_lite.images import sources


def test_checkpoints(folder, stream, tmp_path, tally):
    """Refused, and left as they are: whoever has a copy may put it back."""
    run, path, draw = run_on(folder, "er"), tmp_path / "checkpoint.pt", draw_of("checkpoint")
    with pytest.raises(Stopped):
        training.train(run, tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(5))
    whole, ended = path.read_bytes(), []
    for number in range(trials(45)):
        how = damage(path, draw, number)
        before = state_of(path)
        ended.append((how, *judge(lambda: training.train(run, tmp_path, stream=stream), "nothing", path)))
        assert state_of(path) == before
        assert not (tmp_path / "result.json").exists()
        mend(path, whole)
    hold(tally, ended)
    assert training.train(run, tmp_path, stream=stream)["resumed"] == 1


def test_results_of_runs(folder, stream, tmp_path, tally):
    """A finished run is not trained again, so that what its file says is all there is."""
    run, path, draw = run_on(folder, "er", epochs=1), tmp_path / "result.json", draw_of("result")
    expected, ended = training.train(run, tmp_path, stream=stream), []
    whole = path.read_bytes()
    for number in range(trials(45)):
        how = damage(path, draw, number)
        ended.append((how, *judge(lambda: training.train(run, tmp_path, stream=stream), expected, path)))
        mend(path, whole)
    hold(tally, ended)


def test_stored_results(tmp_path, tally):
    """Another whole result in the place of one is not damaged: who reads it knows what it is of."""
    path, draw, ended = tmp_path / "stored.json", draw_of("stored"), []
    results.write(path, [{"seed": seed, "a_inf": draw.random()} for seed in range(5)])
    whole, expected = path.read_bytes(), results.read(path)
    for number in range(trials(45)):
        how = damage(path, draw, number, without="another file")
        ended.append((how, *judge(lambda: results.read(path), expected, path)))
        mend(path, whole)
    hold(tally, ended)


@pytest.mark.filterwarnings("ignore:the cache .* is damaged; it is built anew")
def test_caches(home, tally):
    """Built anew from the images, which are whole, with a warning."""
    make_tree(home / "toy")
    expected, ended, draw = sources.load("toy").images.tolist(), [], draw_of("cache")
    (path,) = settings.cache_dir().iterdir()
    whole = path.read_bytes()
    for number in range(trials(45)):
        how = damage(path, draw, number)
        ended.append((how, *judge(lambda: sources.load("toy").images.tolist(), expected, path)))
        mend(path, whole)
    hold(tally, ended)


@pytest.mark.parametrize("kind", [0, 1], ids=["images", "labels"])
def test_idx_files(kind, home, tmp_path, tally, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_fashion(tmp_path / "debian", count=3)
    path, draw, ended = sources.idx_files(tmp_path / "debian", "train")[kind], draw_of(f"idx {kind}"), []
    whole, expected = path.read_bytes(), None

    def use() -> tuple[list, list]:
        found = sources.load("fashion-mnist", source="debian")
        return found.images.tolist(), found.labels.tolist()

    expected = use()
    for number in range(trials(45)):
        how = damage(path, draw, number)
        ended.append((how, *judge(use, expected, path)))
        mend(path, whole)
    hold(tally, ended)


@pytest.mark.parametrize("shape", [(6, 5, 3), (12, 12)], ids=["colour", "grey"])
def test_images(shape, home, tally):
    """In a folder, whose cache is built anew for the changed file."""
    path = make_tree(home / "toy", shape=shape) / "train" / "dog" / "1.png"
    expected, whole, draw, ended = sources.load("toy").images.tolist(), path.read_bytes(), draw_of("PNG"), []
    for number in range(trials(45)):
        how = damage(path, draw, number)
        ended.append((how, *judge(lambda: sources.load("toy").images.tolist(), expected, path)))
        mend(path, whole)
    hold(tally, ended)


# What a person writes: no sum guards it, and a damaged one may be another grid.
GRID = """# three methods
streams = ["split-fashion-mnist"]
methods = ["fine-tune", "er", "metasp"]
seeds = [1231, 1232]
memory = [100, 200]
[set]
epochs = 5
lr = 0.05
[set.metasp]
pseudo_steps = 2
"""


def test_grids(tmp_path, tally):
    """Refused, or the grid that the file now describes."""
    path, draw, ended = tmp_path / "grid.toml", draw_of("grid"), []
    path.write_text(GRID, encoding="utf-8")
    whole, out = path.read_bytes(), tmp_path / "out"
    for number in range(trials(45)):
        how = damage(path, draw, number)
        try:
            said = plan.jobs(tomllib.loads(path.read_text(encoding="utf-8")), out)
        except (ValueError, OSError):
            said = None
        ended.append((how, *judge(lambda: plan.read_grid(path, out), said, path)))
        mend(path, whole)
    hold(tally, ended)
    assert not out.exists()
