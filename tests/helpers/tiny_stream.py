"""A folder of images small enough to train on in a second, and runs on it."""

from pathlib import Path

import numpy as np
from PIL import Image

from metasp_lite.continual import presets
from metasp_lite.continual.run import Run
from metasp_lite.continual.training import Watcher

SETTINGS = {
    "epochs": 3,
    "batch": 4,
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "padding": 1,
    "flip": True,
    "memory_batch": 4,
    "dumb_epochs": 2,
    "anchor_steps": 3,
    "anchoring": 0.001,  # its default 0.1 diverges on batches of 4 with momentum
}


def make_folder(root: Path, *, classes: int = 6, train: int = 10, test: int = 4) -> Path:
    """Write 8 × 8 colour images in which each class has a pattern of its own under noise."""
    draw = np.random.default_rng(0)
    for label in range(classes):
        pattern = draw.integers(0, 200, (8, 8, 3))
        for split, count in (("train", train), ("test", test)):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (pattern + draw.integers(0, 56, (8, 8, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return root


def run_on(folder: Path, method: str, *, seed: int = 3, **changed: object) -> Run:
    """Return a run with the lite CNN (batch-norm) and momentum: all that a checkpoint must hold."""
    known = presets.names(method)
    overrides = {name: value for name, value in {**SETTINGS, **changed}.items() if name in known}
    memory = 12 if "memory" in known else None
    return presets.build(str(folder), method, seed, profile="lite", memory=memory, overrides=overrides)


def arguments_of(folder: Path, method: str, *, seed: int = 3, **changed: object) -> list[str]:
    """Return the command line of ``run_on``, but for ``--out``."""
    run = run_on(folder, method, seed=seed, **changed)
    words = ["train", "--stream", str(folder), "--method", method, "--seed", str(seed)]
    for name, value in {**SETTINGS, **changed}.items():
        if name in presets.names(method):
            words += ["--set", f"{name}={value}"]
    return [*words, "--profile", "lite", *(["--memory", "12"] if hasattr(run.settings, "memory") else [])]


# Of a result: what does not depend on how often the run was stopped, nor on the machine.
SAME = ("run", "accuracy_class_incremental", "accuracy_task_incremental", "epoch_losses", "steps")


class Stopped(Exception):
    """Stands for a kill where the test needs to choose the moment."""


def stop_at(epoch: int) -> Watcher:
    """Raise after so many epochs, before they are stored."""
    seen = []

    def watch(*_: object) -> None:
        seen.append(1)
        if len(seen) == epoch:
            raise Stopped

    return watch
