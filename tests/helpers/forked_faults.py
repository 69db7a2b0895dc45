"""Trials on whole commands: killed, two at once, on a full disk.

A script, started once: it forks, which spares each trial the seconds that importing torch takes, and pytest's own
process has too many threads for that.  ``forked_faults.py FOLDER SCRATCH kills=N pairs=N disks=N`` prints counts.
"""

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from helpers.faults import SEED
from helpers.kill_at_random import LEAST, run_to_the_end
from helpers.tiny_stream import SAME, arguments_of
from metasp_lite import results
from metasp_lite.__main__ import main


def what_counts(out: Path) -> dict[str, dict]:
    """The results below a folder, without what differs from time to time."""
    found = {path.parent.relative_to(out).as_posix(): results.read(path) for path in out.rglob("result.json")}
    return {name: {key: result[key] for key in SAME} for name, result in found.items()}


def leftovers(out: Path) -> list[Path]:
    return [*out.rglob("*.part"), *out.rglob("checkpoint.pt")]


def quietly(argv: list[str]) -> tuple[int, str]:
    """Run a command here; return its status and what it said on stderr."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        return main(argv), said.getvalue()


def is_a_sentence(said: str) -> bool:
    lines = said.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("metasp_lite: ") and "Traceback" not in said


def started(argv: list[str], log: Path) -> int:
    """Fork a command that writes what it says into a file."""
    child = os.fork()
    if child == 0:
        status, said = quietly(argv)
        log.write_text(said, encoding="utf-8")
        os._exit(status)
    return child


def alone(command: list[str], out: Path) -> tuple[dict[str, dict], float]:
    """What a command stores that nothing disturbs, and in how many seconds."""
    began = time.monotonic()
    assert quietly([*command, "--out", str(out)])[0] == 0
    return what_counts(out), time.monotonic() - began


def kills(command: list[str], scratch: Path, trials: int, draw: random.Random) -> Counter:
    """Kill a command again and again at random moments until it ends: what it leaves is what it leaves unkilled."""
    counts = Counter(trials=trials, killed=0, lost=0, silent=0, traceback=0)
    expected, seconds = alone(command, scratch / "whole")
    for number in range(trials):
        out, killed, longest = scratch / f"killed-{number}", 0, seconds / 4
        while killed < LEAST:
            shutil.rmtree(out, ignore_errors=True)
            killed = run_to_the_end([*command, "--out", str(out)], draw, longest)
            longest /= 2
        found = what_counts(out)
        resumed = sum(results.read(path)["resumed"] for path in out.rglob("result.json"))
        assert 1 <= resumed <= killed  # it did go on, and each time after a kill
        counts["killed"] += killed
        counts["lost"] += len(expected.keys() - found.keys()) + len(leftovers(out))
        counts["silent"] += sum(found[name] != expected[name] for name in found)
        shutil.rmtree(out)
    shutil.rmtree(scratch / "whole")
    return counts


def pairs(
    command: list[str], scratch: Path, trials: int, draw: random.Random, expected: dict[str, dict], seconds: float
) -> Counter:
    """Start a command twice in one folder, at once or not: one trains, the other says so or finds it done."""
    counts = Counter(trials=trials, refused=0, lost=0, silent=0, traceback=0)
    for number in range(trials):
        out, logs = scratch / f"pair-{number}", [scratch / "log-0", scratch / "log-1"]
        children = []
        for log in logs:
            children.append(started([*command, "--out", str(out)], log))
            time.sleep(draw.uniform(0, 1.2 * seconds) * draw.choice([0, 1]))
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = [log.read_text(encoding="utf-8") if log.exists() else "" for log in logs]
        refused = [text for status, text in zip(statuses, said, strict=True) if status]
        counts["refused"] += len(refused)
        counts["traceback"] += sum(
            not (is_a_sentence(text) and "another process trains in" in text) for text in refused
        )
        counts["lost"] += (len(refused) == 2) + len(leftovers(out)) + (what_counts(out).keys() != expected.keys())
        counts["silent"] += what_counts(out) != expected
        shutil.rmtree(out)
    return counts


def disks(command: list[str], scratch: Path, trials: int, draw: random.Random, expected: dict[str, dict]) -> Counter:
    """Run a command on a disk that gets full somewhere: it says so, and with room it goes on to the same result."""
    small = scratch / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    counts = Counter(trials=trials, refused=0, lost=0, silent=0, traceback=0)
    for _ in range(trials):
        out, ballast = small / "out", small / "ballast"
        free = draw.randint(0, 2 * 2**20)  # a checkpoint of the tiny run has about 0.3 MiB, and two are there at once
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        os.truncate(ballast, max(ballast.stat().st_size - free, 0))
        status, said = quietly([*command, "--out", str(out)])
        if status:
            counts["refused"] += 1
            counts["traceback"] += not (is_a_sentence(said) and "No space left on device" in said)
            counts["lost"] += len([*out.rglob("*.part")])
        ballast.unlink()
        again, _ = quietly([*command, "--out", str(out)])
        counts["lost"] += again != 0 or len(leftovers(out))
        counts["silent"] += what_counts(out) != expected
        shutil.rmtree(out)
    return counts


def full_disk_of_results(scratch: Path, trials: int, draw: random.Random) -> Counter:
    """Replace a stored result where the new one may not fit: then the old one stays, and nothing else is there."""
    path, counts = scratch / "small" / "stored.json", Counter(trials=trials, refused=0, lost=0, silent=0, traceback=0)
    for _ in range(trials):
        results.write(path, {"old": True})
        ballast, large = path.with_name("ballast"), {"new": "x" * draw.randint(1, 2**18)}
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        os.truncate(ballast, max(ballast.stat().st_size - draw.randint(0, 2**18), 0))
        try:
            results.write(path, large)
        except OSError:
            counts["refused"] += 1
            counts["silent"] += results.read(path).get("old") is not True
        else:
            counts["silent"] += results.read(path)["new"] != large["new"]
        counts["lost"] += sorted(each.name for each in path.parent.iterdir()) != ["ballast", "stored.json"]
        ballast.unlink()
    path.unlink()
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, place, *asked = sys.argv[1:]
    wanted = {name: int(count) for name, _, count in (word.partition("=") for word in asked)}
    work, source = Path(place), random.Random(f"{SEED} commands")
    train = [*arguments_of(Path(images), "metasp-rehsel"), "--checkpoint-seconds", "0"]
    # locks and disks see the files alone, whatever is trained
    light = [*arguments_of(Path(images), "er", epochs=2), "--checkpoint-seconds", "0"]
    # in one process: one that is forked cannot start workers; tests/continual/test_grid.py kills those
    grid = ["grid", str(work / "grid.toml"), "--checkpoint-seconds", "0", "--workers", "1"]
    ended: dict[str, Counter] = {}
    whole, seconds = alone(light, work / "alone")  # what training loads late, no process that is forked loads again
    if count := wanted.get("kills"):
        ended["kills of a grid"] = kills(grid, work, count, source)
    if count := wanted.get("more_kills"):
        ended["kills of a run"] = kills(train, work, count, source)
    if count := wanted.get("pairs"):
        ended["pairs"] = pairs(light, work, count, source, whole, seconds)
    if count := wanted.get("disks"):
        ended["disks"] = disks(light, work, count, source, whole)
        ended["disks of results"] = full_disk_of_results(work, 10 * count, source)
    print(json.dumps(ended))
