"""Workers of a grid that are killed at random moments, joblib's and Dask's: every run ends as if nothing had been."""

import contextlib
import os
import signal
import threading
import time

import pytest
from helpers.clusters import cluster
from helpers.faults import draw_of, trials
from helpers.tiny_stream import SAME
from joblib.externals.loky import reusable_executor

from metasp_lite import results
from metasp_lite.continual import grid, plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("FAULTS_TRIALS" not in os.environ, reason="make test kills one of each in tests/continual"),
]
WORKERS = 2


def described(folder):
    chosen = {"epochs": 6, "batch": 4, "lr": 0.02, "momentum": 0.9, "memory_batch": 4}
    return {"streams": [str(folder)], "methods": ["er"], "memory": [12], "seeds": [1, 2, 3], "set": chosen}


def stored(jobs):
    found = {job.name: results.read(job.out / "result.json") for job in jobs if (job.out / "result.json").exists()}
    return {name: {key: result[key] for key in SAME} for name, result in found.items()}


def tried(kill_one, run, folder, out, draw, expected, seconds, tally):
    """Run the grid while a worker is killed at a random moment, and count how that ended."""
    jobs, ended = plan.jobs(described(folder), out), threading.Event()

    def kill():
        ended.wait(draw.uniform(0, seconds))
        tally["killed"] += kill_one(ended)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = run(jobs)
    ended.set()
    killer.join()
    found = stored(jobs)
    tally["trials"] += 1
    tally["lost"] += len(expected) - len(found)
    tally["silent"] += sum(found[name] != expected[name] for name in found)
    tally["traceback"] += sum(outcome.state != "finished" for outcome in outcomes)


def undisturbed(folder, out):
    """What the grid stores that nothing disturbs, and in how many seconds."""
    began, jobs = time.monotonic(), plan.jobs(described(folder), out)
    assert all(outcome.state == "finished" for outcome in grid.run_all(jobs))
    return stored(jobs), time.monotonic() - began


def judged(tally):
    assert tally["trials"] >= 1
    assert (tally["lost"], tally["silent"], tally["traceback"]) == (0, 0, 0)


def test_processes_here(folder, tmp_path, tally):
    """Every tenth of the trials: each starts four processes, which import torch."""
    draw, (expected, seconds) = draw_of("joblib"), undisturbed(folder, tmp_path / "alone")

    def kill_one(ended):
        pids = []
        while not (pids or ended.is_set()):
            pids = list(reusable_executor._executor._processes) if reusable_executor._executor else []
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(pids[0], signal.SIGKILL)
            return 1
        return 0

    for number in range(max(trials(1) // 10, 1)):
        out = tmp_path / str(number)
        tried(
            kill_one,
            lambda jobs: grid.run_all(jobs, workers=WORKERS, checkpoint_seconds=0),
            *(folder, out, draw, expected, seconds, tally),
        )
        reusable_executor._executor.shutdown(wait=True)
    judged(tally)


def test_a_cluster(folder, tmp_path, tally):
    """Every tenth of the trials; the scheduler stays, and for each worker that was killed another comes."""
    draw, (expected, seconds) = draw_of("dask"), undisturbed(folder, tmp_path / "alone")
    with cluster(tmp_path) as (address, workers):
        for number in range(max(trials(1) // 10, 1)):
            victim = workers(WORKERS)[0]

            def kill_one(ended, victim=victim):
                victim.kill()
                return int(victim.wait() == -signal.SIGKILL and not ended.is_set())

            out = tmp_path / str(number)
            tried(
                kill_one,
                lambda jobs: grid.run_all(jobs, dask=address, checkpoint_seconds=0),
                *(folder, out, draw, expected, seconds, tally),
            )
    judged(tally)
