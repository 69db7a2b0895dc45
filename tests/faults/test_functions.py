"""What the doors of the rooms above ``calculus`` refuse, and those of ``networks`` and ``images``."""

import dataclasses
import math
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.analytic import mlp_with_validation, randn
from helpers.bad_values import (
    NO_COUNT,
    NO_NONNEGATIVE,
    NO_OBJECT,
    NO_PATH,
    NO_POSITIVE,
    NO_SEED,
    NO_SHARE,
    NO_TRUTH,
    NO_WHOLE,
    WRONG_TYPE,
    Door,
    no_places,
    no_tensor,
    no_vector_like,
    refused,
    rows,
)
from helpers.made_up_streams import noise_stream
from helpers.small_stages import small_stages

from metasp_lite import images, networks, results
from metasp_lite.calculus import Curvature, minimise, solvers
from metasp_lite.continual import Learner, plan, presets, rehearse, streams, summarise, train
from metasp_lite.continual.grid import run_all
from metasp_lite.continual.learner import Recipe
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.methods.base import MemorySettings
from metasp_lite.continual.request import check, check_on
from metasp_lite.continual.run import Run
from metasp_lite.course import LiveCurves, approximation_plots, plots, problems, step_plots, training_plots
from metasp_lite.course.two_stages import Setup
from metasp_lite.influence import (
    agreement,
    influence,
    influences_by_autograd,
    leave_one_out,
    metasp_gradient,
    mixed,
    official,
    printed,
    pseudo_update_influence,
    relative,
    tracin,
)
from metasp_lite.stages import ProximalObjective, SGDRule, ShortRun, retraining
from metasp_lite.stages.unrolled import Adam
from metasp_lite.stages.updated import JointObjective
from metasp_lite.studies import comparison

NO_VECTOR = {"none": None, "text": "x", "number": 1.0, "list": [1.0, 2.0]}
NO_WORD = {"none": None, "number": 3, "bytes": b"x", "list": ["er"], "unknown": "nonsense", "empty": ""}
NO_WHOLE_FROM_0 = {**NO_WHOLE, "negative": -1}


@cache
def problem():
    training, validation, start = mlp_with_validation()
    theta = minimise(training, start)
    return training, validation, theta


def curvature():
    training, _, theta = problem()
    return Curvature(training, theta)


def vector(seed=1, n=12):
    return randn(n, seed=seed)


def pair():
    return {"true": vector(1), "approximate": vector(2)}


def bad_pair():
    return {name: no_vector_like(vector()) | {"array": np.ones(12)} for name in ("true", "approximate")}


def real_pair():
    """An integer or a truth value has a sign and a rank, too."""
    return {
        name: {bad: value for bad, value in values.items() if bad not in ("integers", "truths")}
        for name, values in bad_pair().items()
    }


BOTH = {"true": "true|shapes|correlation", "approximate": "approximate|shapes|correlation"}


@cache
def model():
    return networks.toy_mlp(4, 3, 3).float()


def examples(count=6):
    return randn(count, 4, seed=3).float(), torch.arange(count) % 3


def step_arguments():
    network = model()
    return {
        "model": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "batch": examples(),
        "old": examples(4),
        "new": examples(3),
    }


def no_examples():
    """An input of another shape or dtype the network itself cannot take."""
    inputs, labels = examples()
    return {
        "wide": (randn(6, 9, seed=3).float(), labels),
        "double": (inputs.double(), labels),
        **NO_OBJECT,
        "empty": (inputs[:0], labels[:0]),
        "fewer": (inputs[:3], labels),
        "beyond": (inputs, labels + 3),
        "negative": (inputs, labels - 1),
        "fractions": (inputs, labels.float()),
        "int32": (inputs, labels.int()),
        "triple": (inputs, labels, 3),
        "alone": (inputs,),
    }


def center():
    problem = small_stages()[0]
    return problem.first_start[: problem.embedding]


SET = {name: f"{name}|label|network with parameters of" for name in ("batch", "old", "new")}


@cache
def stream():
    return noise_stream()


def run(method="fine-tune", **changed):
    made_from = streams.StreamSettings("noise", 2)
    return Run(made_from, Recipe("mlp", epochs=1), method, METHODS[method].Settings(**changed), seed=1)


def other_streams():
    """Cut from other images, or made with other settings than the run has."""
    changes = {"data": "mnist", "per_class": 3, "size": 9, "padding": 1, "flip": True, "class_seed": 1, "wrong": 0.1}
    made = {f"other {name}": dataclasses.replace(run().stream, **{name: value}) for name, value in changes.items()}
    return {name: dataclasses.replace(stream(), made_from=settings) for name, settings in made.items()} | {
        "of its own": stream()
    }


def learner():
    return Learner(stream(), Recipe("mlp", epochs=1), 1)


def image_set(**changed):
    given = {
        "images": torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 0, 1]),
        "classes": ("a", "b"),
        "name": "made-up",
        "source": "here",
    }
    return images.ImageSet(**{**given, **changed})


def split(**given):
    return streams.split(**{"train": image_set(), "test": image_set(), "classes_per_task": 1, **given})


def no_images():
    return {
        **NO_VECTOR,
        "fractions": torch.zeros(4, 1, 2, 2),
        "int64": torch.zeros(4, 1, 2, 2, dtype=torch.int64),
        "flat": torch.zeros(4, 4, dtype=torch.uint8),
        "empty shape": torch.zeros(0, dtype=torch.uint8),
    }


def network(name):
    return lambda **given: getattr(networks, name)(**given)


def axes():
    return plt.figure().subplots()


def square(value=0.5):
    return [[value, None], [0.5, 0.5]]


def circle():
    ring = {}
    ring["a"] = ring
    return ring


MATRICES = {
    **NO_VECTOR, "empty": [], "ragged": [[0.5], [0.5, 0.5]], "wide": [[0.5, 0.5]], "numbers": [0.5, 0.5],
    "above one": square(1.5), "negative": square(-0.1), "nan": square(math.nan), "inf": square(math.inf),
    "text inside": square("x"), "truth inside": square(True), "complex inside": square(1j), "text row": ["ab", "cd"],
    "list inside": square([1]), "percent": square(50),
}  # fmt: skip

INFLUENCE = {
    "sign_confusion": Door(agreement.sign_confusion, pair, real_pair, says=BOTH),
    "pearson": Door(agreement.pearson, pair, real_pair, says=BOTH),
    "spearman": Door(agreement.spearman, pair, real_pair, says=BOTH),
    "bootstrap_pearson": Door(
        agreement.bootstrap_pearson,
        lambda: {"true": vector().view(3, 4), "approximate": vector(2).view(3, 4), "resamples": 3},
        lambda: {
            "true": {
                **no_tensor(),
                "vector": vector(),
                "wide": vector().view(2, 6),
                "nan": vector().view(3, 4) * math.nan,
            },
            "approximate": {**no_tensor(), "vector": vector(), "wide": vector().view(2, 6)},
            "resamples": NO_COUNT,
            "confidence": NO_SHARE,
            "seed": NO_SEED,
        },
        says=BOTH,
    ),
    "comparison_table": Door(
        agreement.comparison_table,
        lambda: {"exact": vector(), "approximations": {"one": vector(2)}, "published": {}},
        lambda: {
            "exact": NO_VECTOR,
            "approximations": {**WRONG_TYPE, "vector": vector(), "list": [vector()]},
            "published": {**WRONG_TYPE, "number": 3},
        },
    ),
    "influence": Door(
        influence,
        lambda: {
            "losses": problem()[0].losses,
            "validation": problem()[1],
            "curvature": curvature(),
            "solver": solvers.Identity(),
        },
        lambda: {
            "losses": {**NO_OBJECT, "scalar": lambda theta: theta.sum()},
            "validation": NO_OBJECT,
            "curvature": {**NO_OBJECT, "objective": problem()[0]},
            "solver": {**NO_OBJECT, "class": solvers.Identity},
        },
    ),
    "tracin": Door(
        tracin,
        lambda: {
            "losses": problem()[0].losses,
            "validations": [problem()[1]],
            "checkpoints": [problem()[2]],
            "steps": [0.1],
        },
        lambda: {
            "losses": {**NO_OBJECT, "scalar": lambda theta: theta.sum()},
            "validations": {"none": None, "number": 1.0, "empty": []},
            "checkpoints": {"none": None, "number": 1.0, "empty": [], "text inside": ["x"]},
            "steps": {"none": None, "number": 1.0, "empty": [], "negative": [-0.1], "nan": [math.nan]},
        },
        says={"validations": "validation", "checkpoints": "checkpoint|θ"},
    ),
    "leave_one_out": Door(
        leave_one_out,
        lambda: {"curvature": curvature(), "validation": problem()[1], "examples": torch.tensor([0, 3])},
        lambda: {
            "curvature": {**NO_OBJECT, "damped": Curvature(problem()[0], problem()[2], 0.1)},
            "validation": NO_OBJECT,
            "examples": {**no_places(40), "empty": torch.tensor([]).long()},
            "fraction": NO_SHARE,
            "tolerance": NO_POSITIVE,
            "max_iterations": NO_WHOLE_FROM_0,
            "chunk": NO_COUNT,
        },
        says={"curvature": "curvature|damping"},
    ),
    "SGDRule": Door(
        SGDRule,
        lambda: {"lr": 0.1},
        lambda: {
            "lr": NO_POSITIVE,
            "momentum": NO_NONNEGATIVE,
            "weight_decay": NO_NONNEGATIVE,
            "nesterov": {**NO_TRUTH, "without momentum": True},
        },
    ),
    "pseudo_update_influence": Door(
        pseudo_update_influence,
        lambda: {"objective": problem()[0], "validation": problem()[1], "theta": problem()[2], "step": 0.1},
        lambda: {
            "objective": NO_OBJECT,
            "validation": NO_OBJECT,
            "theta": no_vector_like(problem()[2]),
            "step": NO_POSITIVE,
            "steps": NO_COUNT,
        },
        says={"theta": "theta|θ|loss|parameter", "step": "step|lr|parameter after"},
    ),
    "metasp_gradient": Door(
        metasp_gradient,
        step_arguments,
        lambda: {
            "model": NO_OBJECT,
            **{name: no_examples() for name in ("batch", "old", "new")},
            "pseudo_steps": NO_COUNT,
            "variant": NO_OBJECT,
            "loss": NO_OBJECT,
        },
        says={**SET, "pseudo_steps": "steps"},
    ),
    "influences_by_autograd": Door(
        lambda model, optimizer, batch, old, new, **settings: influences_by_autograd(
            model, optimizer, batch, old, **settings
        ),
        step_arguments,
        lambda: {"model": NO_OBJECT, "batch": NO_OBJECT, "pseudo_steps": NO_COUNT, "loss": NO_OBJECT},
        says=SET,
    ),
    **{
        variant.__name__: Door(
            variant,
            lambda: {
                "stability": vector(1),
                "plasticity": vector(2),
                "stability_loss": torch.tensor(0.5).double(),
                "plasticity_loss": torch.tensor(0.5).double(),
            },
            lambda: (
                {
                    name: {
                        k: v for k, v in no_vector_like(vector()).items() if k not in ("integers", "truths", "complex")
                    }
                    for name in ("stability", "plasticity")
                }
                | {"stability_loss": NO_VECTOR, "plasticity_loss": NO_VECTOR}
            ),
            says={"stability": "stability|first|shapes", "plasticity": "plasticity|second|shapes"},
        )
        for variant in (relative, mixed, printed, official)
    },
    "JointObjective": Door(
        JointObjective,
        lambda: {"pretraining": problem()[0], "finetuning": problem()[0], "alpha": 0.5},
        lambda: {"pretraining": NO_OBJECT, "finetuning": NO_OBJECT, "alpha": {**NO_SHARE, "one": 1.0}},
    ),
    "Adam": Door(
        Adam,
        lambda: {"lr": 0.1},
        lambda: {
            "lr": NO_POSITIVE,
            "eps": NO_NONNEGATIVE,
            "betas": {**WRONG_TYPE, "one": (0.9,), "three": (0.9, 0.9, 0.9), "1": (1.0, 0.9), "negative": (0.9, -0.1)},
        },
    ),
    "running": Door(
        lambda theta, batches: ShortRun(problem()[0], Adam(), batches)(theta),
        lambda: {"theta": problem()[2], "batches": torch.tensor([[0, 39]])},
        lambda: {
            "theta": {k: v for k, v in no_vector_like(problem()[2]).items() if k in ("longer", "matrix", "nan", "inf")},
            "batches": {"beyond": torch.tensor([[0, 40]]), "negative": torch.tensor([[0, -1]])},
        },
        says={"theta": "θ|parameter", "batches": "index"},
    ),
    "ShortRun": Door(
        ShortRun,
        lambda: {"objective": problem()[0], "rule": Adam(), "batches": torch.zeros(2, 3, dtype=torch.int64)},
        lambda: {
            "objective": NO_OBJECT,
            "rule": {**NO_OBJECT, "class": Adam},
            "batches": {
                **no_tensor(),
                "fractions": torch.zeros(2, 3),
                "vector": torch.zeros(3, dtype=torch.int64),
                "empty": torch.zeros(2, 0, dtype=torch.int64),
            },
        },
    ),
    "Protocol": Door(
        retraining.Protocol,
        lambda: {"rule": Adam()},
        lambda: {
            "rule": {**NO_OBJECT, "class": Adam},
            "steps": {**WRONG_TYPE, "one": (1,), "three": (1, 2, 3), "zero": (0, 1), "fraction": (1.5, 2)},
            "batch": {k: v for k, v in NO_COUNT.items() if k != "huge"} | {"one": 1},
            "matched": NO_TRUTH,
            "seed": NO_SEED,
        },
    ),
    "ProximalObjective": Door(
        ProximalObjective,
        lambda: {"finetuning": small_stages()[0].finetuning, "center": center(), "alpha": 0.5},
        lambda: {
            "finetuning": NO_OBJECT,
            "center": {k: v for k, v in no_vector_like(center()).items() if k not in ("integers", "truths", "complex")},
            "alpha": NO_NONNEGATIVE,
        },
    ),
}

NO_SIZE = {**NO_COUNT, "beyond memory": 2**50}
NO_SIZES = {**WRONG_TYPE, "zero": (0, 2), "negative": (2, -1), "fraction": (2.5,), "texts": ("a",), "truth": (True, 2)}
NO_DTYPE = {**NO_OBJECT, "whole": torch.int64, "bytes": torch.uint8, "complex": torch.complex64}
SIZES = {name: f"{name}|memory cannot hold" for name in ("inputs", "hidden", "classes", "channels", "widths")}
NO_NUMBERS = {"texts": ("a",), "nones": (None,), "tensors": (torch.tensor(1.0),)}

MADE = {
    "toy_mlp": Door(
        network("toy_mlp"),
        dict,
        lambda: {
            **dict.fromkeys(("inputs", "hidden", "classes"), NO_SIZE),
            "seed": NO_SEED,
            "dtype": NO_DTYPE,
        },
        says=SIZES,
    ),
    "logistic_regression": Door(
        network("logistic_regression"),
        lambda: {"inputs": 2},
        lambda: {"inputs": NO_SIZE, "dtype": NO_DTYPE},
        says=SIZES,
    ),
    "lite_cnn": Door(
        network("lite_cnn"),
        lambda: {"widths": (2, 2)},
        lambda: {
            "classes": NO_SIZE,
            "channels": NO_SIZE,
            "widths": {**NO_SIZES, "number": 3, "empty": (), "beyond memory": (2**40,)},
            "seed": NO_SEED,
            "dtype": NO_DTYPE,
        },
        says=SIZES,
    ),
    "resnet18": Door(
        network("resnet18"),
        lambda: {"width": 2},
        lambda: {
            "classes": NO_COUNT,
            "channels": NO_COUNT,
            "width": {k: v for k, v in NO_COUNT.items() if k != "huge"},
            "seed": NO_SEED,
        },
    ),
    "mlp": Door(
        network("mlp"),
        lambda: {"shape": (2, 2), "classes": 3},
        lambda: {
            "shape": {**NO_SIZES, "number": 3},
            "classes": NO_SIZE,
            "hidden": {**NO_SIZES, "number": 3},
            "seed": NO_SEED,
        },
        says=SIZES,
    ),
    "two_stage": Door(
        network("two_stage"),
        lambda: {"specification": networks.TABLE_A["mnist"], "shape": (1, 8, 8), "classes": 2, "width": 16},
        lambda: {
            "specification": NO_OBJECT,
            "shape": {**NO_SIZES, "number": 3, "no sides": (1,), "more sides": (1, 8, 8, 8), "too small": (1, 1, 1)},
            "classes": NO_COUNT,
            "width": {**NO_COUNT, "too many": 1000},
            "seed": NO_SEED,
        },
        says={"shape": "shape|images of"},
    ),
    "ImageSet": Door(
        image_set,
        dict,
        lambda: {
            "images": no_images(),
            "classes": {
                "none": None,
                "text": "ab",
                "list": ["a", "b"],
                "fewer": ("a",),
                "twice": ("a", "a"),
                "numbers": (1, 2),
            },
            "labels": {
                **NO_VECTOR,
                "fractions": torch.zeros(4),
                "int32": torch.zeros(4).int(),
                "fewer": torch.zeros(3).long(),
                "beyond": torch.tensor([0, 1, 2, 0]),
                "negative": torch.tensor([-1, 0, 0, 0]),
                "matrix": torch.zeros(4, 1).long(),
            },
            "name": {"none": None, "number": 3},
            "source": {"none": None, "number": 3},
        },
        says={"classes": "classes|labels", "images": "images|labels"},
    ),
    "take": Door(
        lambda index: image_set().take(index), lambda: {"index": torch.tensor([1])}, lambda: {"index": no_places(4)}
    ),
    "only": Door(
        lambda classes: image_set().only(classes),
        lambda: {"classes": [1]},
        lambda: {
            "classes": {
                **WRONG_TYPE,
                "number": 1,
                "beyond": [2],
                "negative": [-1],
                "twice": [1, 1],
                "empty": [],
                "fraction": [0.5],
                "texts": ["a"],
                "truth": [True],
                "array": np.array([0, 1]),
                "tensor": torch.tensor([0, 1]),
            }
        },
    ),
    "places": Door(
        lambda **given: image_set().places(**given),
        lambda: {"classes": [1], "per_class": 1},
        lambda: {
            "classes": {**WRONG_TYPE, "beyond": [2], "negative": [-1], "twice": [1, 1], "fraction": [0.5]},
            "per_class": NO_COUNT,
            "skip": NO_WHOLE_FROM_0,
        },
    ),
    "first_per_class": Door(
        images.first_per_class,
        lambda: {"images": image_set(), "count": 1},
        lambda: {"images": NO_OBJECT, "count": {**NO_COUNT, "too many": 3}},
        says={"count": "count|asked for"},
    ),
    "load": Door(
        lambda **given: images.load(**{"name": "fashion-mnist", "split": "test", "source": "bundled", **given}),
        dict,
        lambda: {
            "name": {
                **{"none": None, "number": 3, "bytes": b"x", "unknown": "nonsense", "no folder": "/none/such"},
                **{"zero byte": "a\0b", "zero byte in a path": "/tmp/a\0b", "long": "a" * 5000},
                **{"long path": "/" + "a" * 5000, "of nobody": "~nobody-of-this-name/x", "a file": __file__},
            },
            "split": {"none": None, "number": 3, "unknown": "val", "empty": "", "list": []},
            "source": {"number": 3, "unknown": "nonsense", "empty": "", "list": []},
            "size": {k: v for k, v in {**NO_COUNT, "huge": 2**40}.items() if k != "none"},
            "whole": NO_TRUTH,
        },
        says={"name": "name|nonsense|/none/such|no folder|has no source"},
    ),
    "download": Door(
        images.download,
        dict,
        lambda: {"name": {"none": None, "number": 3, "unknown": "nonsense", "path": Path("x"), "empty": ""}},
        says={"name": "name|cannot be downloaded"},
        costs=True,
    ),
    "Augmentation": Door(
        images.Augmentation,
        lambda: {"mean": (1.0,), "std": (2.0,)},
        lambda: {
            "mean": {**WRONG_TYPE, **NO_NUMBERS, "empty": (), "nan": (math.nan,), "more": (1.0, 2.0)},
            "std": {**WRONG_TYPE, **NO_NUMBERS, "empty": (), "zero": (0.0,), "negative": (-1.0,), "inf": (math.inf,)},
            "padding": NO_WHOLE_FROM_0,
            "flip": NO_TRUTH,
        },
    ),
    "augmenting": Door(
        lambda **given: images.Augmentation((1.0,), (2.0,), padding=1)(**given),
        lambda: {"images": image_set().images, "generator": torch.Generator()},
        lambda: {
            "images": {
                **no_tensor(),
                "one": image_set().images[0],
                "coloured": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
            },
            "generator": NO_OBJECT,
        },
    ),
    "normalise": Door(
        images.Augmentation((1.0,), (2.0,)).normalise,
        lambda: {"images": image_set().images},
        lambda: {
            "images": {
                **no_tensor(),
                "one": image_set().images[0],
                "coloured": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
            }
        },
    ),
    "fitted": Door(
        images.Augmentation.fitted,
        lambda: {"images": image_set().images},
        lambda: {"images": no_images(), "padding": {**NO_WHOLE_FROM_0, "beyond": 2}, "flip": NO_TRUTH},
    ),
}

LEARNT = {
    "summarise": Door(
        summarise, lambda: {"matrix": square()}, lambda: {"matrix": MATRICES}, says={"matrix": "matrix|accuracy"}
    ),
    "split": Door(
        split,
        dict,
        lambda: {
            "train": NO_OBJECT,
            "test": NO_OBJECT,
            "classes_per_task": {**NO_COUNT, "undivided": 3},
            "per_class": {k: v for k, v in {**NO_COUNT, "too many": 9}.items() if k != "none"},
            "seed": {k: v for k, v in NO_SEED.items() if k != "none"},
            "padding": {**NO_WHOLE_FROM_0, "beyond": 2},
            "flip": NO_TRUTH,
            "device": {"text": "nonsense", "number": 0},
            "held_out": {k: v for k, v in {**NO_COUNT, "all": 2}.items() if k != "none"},
            "trusted": {**NO_WHOLE_FROM_0, "all": 2},
            "wrong": {k: v for k, v in NO_SHARE.items() if k != "zero"},
            "wrong_by": {"none": None, "number": 3, "empty": "", "unknown": "nonsense"},
            "wrong_seed": NO_SEED,
        },
        says={"classes_per_task": "classes_per_task|tasks of", "per_class": "per_class|count|asked for"},
    ),
    "build": Door(
        lambda **given: presets.build(**{"stream": "split-mnist", "method": "er", "seed": 1, **given}),
        dict,
        lambda: {
            "stream": {**NO_WORD, "long": "a" * 5000, "zero byte": "a\0b", "no text": "\udce9"},
            "method": NO_WORD,
            "seed": {**NO_SEED, "huge": 2**63},
            "profile": {k: v for k, v in NO_WORD.items() if k != "none"},
            "memory": {k: v for k, v in {**NO_COUNT, "huge": 2**31}.items() if k != "none"},
            "overrides": {
                **{"text": "x", "number": 3, "list": ["lr"], "underscore": {"padding": "1_0"}},
                **{"underscore in a fraction": {"lr": "0.1_0"}, "another script's digit": {"batch": "\u0664"}},
            },
        },
        says={"method": "method", "overrides": "overrides|padding=1_0|lr=0.1_0|batch=\u0664"},
    ),
    "rehearse": Door(
        lambda **given: rehearse(learner(), **given),
        lambda: {
            "batch": learner().batch(torch.arange(3)),
            "images": stream().images[:2],
            "labels": stream().labels[:2],
        },
        lambda: {
            "batch": NO_OBJECT,
            "images": {**no_tensor(), "fewer": stream().images[:1], "flat": stream().images[:2, 0]},
            "labels": {**no_tensor(), "fewer": stream().labels[:1]},
        },
        says={"images": "images"},
    ),
    "read_grid": Door(
        plan.read_grid,
        dict,
        lambda: {"path": NO_PATH, "out": NO_PATH, "threads": {k: v for k, v in NO_WHOLE.items() if k != "inf"}},
        says={"out": "path|out", "threads": "path|threads"},
        costs=True,
    ),
    "jobs": Door(
        plan.jobs,
        lambda: {
            "description": {"streams": ["split-mnist"], "methods": ["er"], "seeds": [1]},
            "out": STORED,
        },
        lambda: {
            "description": {**NO_OBJECT, "pairs": [("seeds", [1])]},
            "out": NO_PATH,
            "threads": {**NO_COUNT, "huge": 10**6},
        },
    ),
    "names": Door(presets.names, lambda: {"method": "er"}, lambda: {"method": NO_WORD}),
    "make": Door(streams.make, dict, lambda: {"chosen": NO_OBJECT, "device": {"number": 1.5}}, costs=True),
    "StreamSettings": Door(
        streams.StreamSettings,
        lambda: {"data": "x", "classes_per_task": 2},
        lambda: {
            "data": {"none": None, "number": 3, "empty": "", "blank": " "},
            "classes_per_task": {**NO_WHOLE, "huge": 2**64},
            "per_class": {k: v for k, v in NO_WHOLE.items() if k != "none"},
            "size": {k: v for k, v in {**NO_WHOLE, "huge": 2**64}.items() if k != "none"},
            "padding": {**NO_WHOLE_FROM_0, "huge": 2**64},
            "flip": NO_TRUTH,
            "class_seed": {k: v for k, v in NO_SEED.items() if k != "none"},
            "source": {"number": 3, "list": []},
        },
    ),
    "Recipe": Door(
        Recipe,
        lambda: {"network": "mlp", "epochs": 1},
        lambda: {
            "network": NO_WORD,
            "epochs": {**NO_COUNT, "huge": 2**64},
            "lr": {**NO_POSITIVE, "huge": 1e300},
            "momentum": {k: v for k, v in NO_NONNEGATIVE.items() if k not in ("nan", "inf")},
            "weight_decay": {k: v for k, v in {**NO_NONNEGATIVE, "huge": 1e300}.items() if k not in ("nan", "inf")},
            "batch": {**NO_COUNT, "huge": 2**64},
            **dict.fromkeys(("nesterov", "channels_last", "bf16", "compile"), NO_TRUTH),
        },
    ),
    "MemorySettings": Door(
        MemorySettings,
        dict,
        lambda: {"memory": {**NO_COUNT, "huge": 2**31}, "memory_batch": {**NO_COUNT, "huge": 2**64}},
    ),
    "Learner": Door(
        Learner,
        lambda: {"stream": stream(), "recipe": Recipe("mlp", epochs=1), "seed": 1},
        lambda: {"stream": NO_OBJECT, "recipe": NO_OBJECT, "seed": {**NO_SEED, "huge": 2**63}},
    ),
    "train": Door(
        train,
        lambda: {"run": run(), "out": STORED, "stream": dataclasses.replace(stream(), made_from=run().stream)},
        lambda: {
            "run": NO_OBJECT,
            "out": NO_PATH,
            "stream": {k: v for k, v in NO_OBJECT.items() if k != "none"} | other_streams(),
            "checkpoint_seconds": {k: v for k, v in NO_NONNEGATIVE.items() if k != "inf"},
            "threads": {k: v for k, v in {**NO_COUNT, "huge": 10**6}.items() if k != "none"},
            "watch": {"text": "x", "number": 3},
            "progress_bar": {k: v for k, v in NO_TRUTH.items() if k != "none"},
            "wait": NO_NONNEGATIVE,
        },
        costs=True,
    ),
    "check_on": Door(
        check_on,
        lambda: {"run": run("er-late", memory=12, memory_batch=4), "stream": stream()},
        lambda: {"run": {"without trusted examples": run("er-late", memory=12, memory_batch=4, rehearse_trusted=True)}},
        says={"run": "rehearse_trusted"},
    ),
    "check": Door(
        check,
        lambda: {"run": run("mir", memory=12, memory_batch=4)},
        lambda: {
            "run": {
                "more candidates than memory": run("mir", memory=12, memory_batch=4, candidates=13),
                "more compared than memory": run("gss", memory=12, memory_batch=4, compared=13),
                "larger batch than memory": run("er", memory=12, memory_batch=13),
            }
        },
        says={"run": "candidates=13|compared=13|memory_batch=13"},
    ),
    "run_all": Door(
        run_all,
        lambda: {"chosen": []},
        lambda: {
            "chosen": {**{k: v for k, v in NO_OBJECT.items() if k != "list"}, "words": ["x"]},
            "workers": NO_COUNT,
            "dask": {"number": 3, "bytes": b"x"},
            "checkpoint_seconds": {k: v for k, v in NO_NONNEGATIVE.items() if k != "inf"},
            "progress_bar": {k: v for k, v in NO_TRUTH.items() if k != "none"},
        },
    ),
}

STORED = Path("stored.json")  # never written: the good calls are those of tests/test_results.py
KEPT = {
    "write": Door(
        results.write,
        lambda: {"path": STORED, "result": {}},
        lambda: {
            "path": {
                **NO_PATH,
                **{"folder": Path("/"), "zero byte": Path("a\0b"), "no folder to be": Path("/proc/none/x.json")},
            },
            "result": {
                **{"none": None, "number": 3, "text": "abc", "texts": ["abc"], "tensor": {"a": torch.ones(2)}},
                **{"set": {"a": {1, 2}}, "numpy's": {"a": np.float32(1)}, "nan": {"a": math.nan}},
                **{"in a circle": circle(), "no text": {"a": "\udce9"}, "no key": {(1, 2): 3}},
            },
        },
        says={"path": "path|result cannot be written"},
        costs=True,
    ),
    "paired": Door(
        comparison.paired,
        lambda: {"first": [0.5, 0.6, 0.7], "second": [0.4, 0.6, 0.8]},
        lambda: dict.fromkeys(("first", "second"), NO_SAMPLE),
        says={name: f"{name}|shapes|finite" for name in ("first", "second")},
    ),
    "holm": Door(
        comparison.holm,
        lambda: {"p_values": [0.5, 0.1]},
        lambda: {
            "p_values": {
                **{"none": None, "number": 3, "texts": ["x"], "truth inside": [[True], 1]},
                **{"nan": [math.nan], "above one": [1.5], "negative": [-0.1], "inf": [math.inf]},
            }
        },
        says={"p_values": "p_values|p="},
    ),
    "detectable": Door(
        comparison.detectable,
        lambda: {"spread": 1.0, "pairs": 5},
        lambda: {
            "spread": NO_NONNEGATIVE,
            "pairs": {**NO_COUNT, "one": 1},
            "power": {**NO_SHARE, "one": 1.0},
            "level": {**NO_SHARE, "above the power": 0.9},
        },
    ),
    "read": Door(
        results.read, dict, lambda: {"path": {**NO_PATH, "folder": Path(), "none there": Path("none")}},
        says={"path": "path|result"}, costs=True,
    ),
}  # fmt: skip


NO_SAMPLE = {
    **NO_VECTOR, "texts": ["x", "y", "z"], "fewer": [0.5, 0.6], "one": [0.5], "nan": [0.5, 0.6, math.nan],
    "inf": [0.5, 0.6, math.inf], "ragged": [[0.5], [0.5, 0.6], 0.7],
}  # fmt: skip


def no_drawing():
    return no_tensor() | {
        "empty": vector()[:0],
        "fewer": vector(n=5),
        "nan": vector() * math.nan,
        "inf": vector() / 0,
    }


DRAWN = {name: f"{name}|shapes" for name in ("predicted", "true", "exact", "approximate", "from_memory")}
DRAWN |= {name: f"{name}|shapes" for name in ("stability", "plasticity")}

SHOWN = {
    "shoes": Door(
        problems.shoes,
        dict,
        lambda: {"train_per_class": {**NO_COUNT, "too many": 10**6}, "test_per_class": NO_COUNT, "l2": NO_NONNEGATIVE},
        says={"train_per_class": "train_per_class|asked for"},
        costs=True,
    ),
    "toy": Door(
        problems.toy,
        dict,
        lambda: {
            "train_per_class": NO_COUNT,
            "test_per_class": NO_COUNT,
            "hidden": NO_COUNT,
            "l2": NO_NONNEGATIVE,
            "pooling": {**NO_COUNT, "no divisor": 3},
            "seed": NO_SEED,
        },
        costs=True,
    ),
    "two_tasks": Door(
        problems.two_tasks,
        dict,
        lambda: dict.fromkeys(("hidden", "memory", "validation", "batch"), NO_COUNT) | {"seed": NO_SEED},
        costs=True,
    ),
    "Setup": Door(
        Setup,
        dict,
        lambda: {
            **dict.fromkeys(("first_per_class", "second_per_class", "test_per_class", "width", "size"), NO_COUNT),
            "skip": NO_WHOLE_FROM_0,
            "l2": NO_NONNEGATIVE,
            "seed": NO_SEED,
            "first": {**WRONG_TYPE, "one": (1,), "twice": (1, 1), "negative": (-1, 1)},
            "second": {**WRONG_TYPE, "empty": (), "twice": (1, 1)},
            "pooling": {"none": None, "number": 3, "unknown": "nonsense"},
            "network": {"none": None, "number": 3, "unknown": "nonsense"},
            "data": {"none": None, "number": 3},
            "source": {"number": 3},
        },
    ),
    "LiveCurves": Door(LiveCurves, dict, lambda: {"every": NO_COUNT, "show": NO_OBJECT}),
    "image_grid": Door(
        plots.image_grid,
        lambda: {"images": image_set().images, "titles": ["a", "b", "c", "d"]},
        lambda: {
            "images": {
                **no_tensor(),
                "empty": image_set().images[:0],
                "flat": torch.zeros(4, 4, dtype=torch.uint8),
                "five channels": torch.zeros(4, 5, 2, 2, dtype=torch.uint8),
            },
            "titles": {**WRONG_TYPE, "number": 3, "fewer": ["a"]},
            "columns": NO_COUNT,
        },
    ),
    "correlations": Door(
        plots.correlations,
        lambda: {"ax": axes(), "table": pd.DataFrame({"a": [0.5]})},
        lambda: {"ax": NO_OBJECT, "table": {**NO_OBJECT, "wide": pd.DataFrame({name: [1.0] for name in "abc"})}},
        says={"table": "table|columns"},
    ),
    "predicted_against_true": Door(
        plots.predicted_against_true,
        lambda: {"ax": axes(), "predicted": vector(), "true": vector(2)},
        lambda: {"ax": NO_OBJECT, "predicted": no_drawing(), "true": no_drawing()},
        says=DRAWN,
    ),
    "approximate_against_exact": Door(
        approximation_plots.approximate_against_exact,
        lambda: {"ax": axes(), "exact": vector(), "approximate": vector(2)},
        lambda: {"ax": NO_OBJECT, "exact": no_drawing(), "approximate": no_drawing()},
        says=DRAWN,
    ),
    "stability_plasticity": Door(
        step_plots.stability_plasticity,
        lambda: {"ax": axes(), "stability": vector(), "plasticity": vector(2), "from_memory": vector() > 0},
        lambda: {
            "ax": NO_OBJECT,
            **dict.fromkeys(("stability", "plasticity"), no_drawing()),
            "from_memory": {**no_drawing(), "fractions": vector(), "whole": torch.arange(12)},
        },
        says=DRAWN,
    ),
    "matrix_heatmap": Door(
        training_plots.matrix_heatmap,
        lambda: {"ax": axes(), "matrix": square()},
        lambda: {"ax": NO_OBJECT, "matrix": MATRICES},
        says={"matrix": "matrix|accuracy"},
    ),
}

DOORS = {**INFLUENCE, **MADE, **LEARNT, **KEPT, **SHOWN}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", [name for name, door in DOORS.items() if not door.costs])
def test_the_door_opens(name):
    DOORS[name].try_with()


@pytest.mark.parametrize(("name", "argument", "bad"), rows(DOORS))
def test_bad_values_are_refused_by_name(name, argument, bad):
    refused(DOORS[name], argument, bad)
