"""Runs of a method on small parts of Fashion-MNIST: that it learns, and that it goes on when stopped."""

import functools
import tempfile
from pathlib import Path

import torch

from metasp_lite.continual import methods, streams
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.replay import FineTune
from metasp_lite.continual.run import Run
from metasp_lite.continual.training import train

CPU = torch.device("cpu")


@functools.cache
def small_stream(per_class=100):
    """Five pairs of Fashion-MNIST's classes."""
    return streams.make(streams.StreamSettings("fashion-mnist", 2, per_class, source="bundled"), device=CPU)


def small_run(name, out, *, network="mlp", epochs=5, stream=None, watch=None, **chosen):
    stream = stream or small_stream()
    run = Run(
        stream.made_from, Recipe(network, epochs, lr=0.05), name, methods.METHODS[name].Settings(**chosen), seed=3
    )
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
    return streams.make(streams.StreamSettings("fashion-mnist", 2, 60, source="bundled", **kinds), device=CPU)


def sixty_run(method, chosen, stream, epochs=3, network="mlp"):
    return Run(stream.made_from, Recipe(network, epochs), method, chosen, 5)


def gain_over_fine_tuning(method, chosen, stream, out):
    """A run's result, and by how much its final accuracy is above that of fine-tuning.

    Fine-tuning keeps the last two classes, 20 %; ten classes by chance are 10 %.
    """
    result = train(sixty_run(method, chosen, stream), out / "a", stream=stream)
    plain = train(sixty_run("fine-tune", FineTune.Settings(), stream), out / "b", stream=stream)
    return result, result["class_incremental"]["a_inf"] - plain["class_incremental"]["a_inf"]
