"""Runs of a method on small parts of Fashion-MNIST: that it learns, and that it goes on when stopped."""

import functools
import tempfile
from pathlib import Path

import torch

from metasp_lite.continual import methods, presets, streams
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.replay import FineTune
from metasp_lite.continual.run import Run
from metasp_lite.continual.training import train
from metasp_lite.images import sets, sources


@functools.cache
def small_stream(per_class=100):
    """Five pairs of Fashion-MNIST's classes."""
    parts = (sources.load("fashion-mnist", part, source="bundled") for part in ("train", "test"))
    train_part, test_part = (sets.first_per_class(p, n) for p, n in zip(parts, (per_class, 50), strict=True))
    device = torch.device("cpu")
    return streams.split(train_part, test_part, classes_per_task=2, device=device)


def small_run(name, out, *, network="mlp", epochs=5, stream=None, watch=None, **chosen):
    made_by = streams.StreamSettings("fashion-mnist", 2)
    run = Run(made_by, Recipe(network, epochs, lr=0.05), name, methods.METHODS[name].Settings(**chosen), seed=3)
    stream = stream or small_stream()
    return train(run, out, stream=stream, checkpoint_seconds=0, watch=watch, progress_bar=False)


@functools.cache
def fine_tuned():
    with tempfile.TemporaryDirectory() as out:
        return small_run("fine-tune", Path(out))["class_incremental"]["a_inf"]


def assert_learns(name, margin, out):
    """The method ends ``margin`` above fine-tuning, which ends at chance, 1/5: it knows the last task alone."""
    lower = fine_tuned()
    assert 0.15 < lower < 0.21
    assert small_run(name, out)["class_incremental"]["a_inf"] > lower + margin


def learner_in_second_task(method_type, chosen, *, network="mlp", **recipe):
    """A learner that has trained one epoch of the first task, and its method, and the first batch of the second."""
    stream = small_stream()
    learner = Learner(stream, Recipe(network, 1, **recipe), seed=5)
    method = method_type(learner, chosen)
    for index in learner.batches(learner.task.train):
        method.step(learner, learner.batch(index))
    method.end_task(learner)
    learner.task_number = 1
    return learner, method, learner.batch(learner.batches(learner.task.train)[0])


# the same with 60 training images of a class, all test images and the preset's learning rate, for methods that are slow


def sixty_stream(**kinds):
    """Five pairs of Fashion-MNIST's classes, 60 training images of each; ``kinds`` are crops and flips."""
    train_part, test_part = (sources.load("fashion-mnist", part, source="bundled") for part in ("train", "test"))
    return streams.split(train_part, test_part, classes_per_task=2, per_class=60, device=torch.device("cpu"), **kinds)


def sixty_run(method, chosen, epochs=3, network="mlp"):
    return Run(presets.STREAMS["lite"]["split-fashion-mnist"].stream, Recipe(network, epochs), method, chosen, 5)


def gain_over_fine_tuning(method, chosen, stream, out):
    """A run's result, and by how much its final accuracy is above that of fine-tuning.

    Fine-tuning keeps the last two classes, 20 %; ten classes by chance are 10 %.
    """
    result = train(sixty_run(method, chosen), out / "a", stream=stream)
    plain = train(sixty_run("fine-tune", FineTune.Settings()), out / "b", stream=stream)
    return result, result["class_incremental"]["a_inf"] - plain["class_incremental"]["a_inf"]
