"""The halves of ``uses`` again, for a small convolutional network and its training run, which ends at no optimum."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metasp_lite.calculus import solvers
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Objective, per_example_gradients
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.influence import agreement
from metasp_lite.influence.hessian import influence_on_each
from metasp_lite.networks import Conv, Pool, Specification, two_stage
from metasp_lite.studies.uses import POOLING, cut, queries_of, random_halves, toy

_LAYERS = Specification((Conv(8, 3), Pool(), Conv(16, 3), Pool()))  # as Table A's for MNIST, with fewer filters
_EPOCHS, _BATCH, _RATE, _MOMENTUM, _L2 = 10, 50, 0.05, 0.9, 1e-3
_DAMPINGS = (0.01, 0.1, 1.0)


def study(count: int = 30, networks: int = 3, epochs: int = _EPOCHS) -> dict[str, object]:
    """Linear datamodelling scores of 50 queries, a row for each score, taken at one network and averaged over several.

    ``count`` halves, two banks of networks that differ in starting weights and in the order of batches; scores are held
    against bank A, and bank B for the ceiling too.
    """
    problem = toy()
    whole, tested = problem.objective.losses, problem.validation.losses
    queries = cut(tested, queries_of(tested.labels))
    halves = random_halves(count, len(whole))
    banks = [
        torch.stack(
            [_losses(queries)(_run(cut(whole, row), seed + k, epochs)[-1]) for k, row in enumerate(tqdm(halves))]
        )
        for seed in (1000, 2000)
    ]
    found: dict[str, list[Tensor]] = {}
    accuracies = []
    for seed in range(networks):
        path = _run(whole, seed, epochs)
        accuracies.append([_accuracy(losses, path[-1]) for losses in (whole, tested)])
        for name, score in _scores(whole, queries, path).items():
            found.setdefault(name, []).append(score)
    rows = []
    for name, scores in found.items():
        for many in sorted({1, networks}):
            mean = torch.stack(scores[:many]).mean(dim=0)
            lds = agreement.linear_datamodelling_score(mean, halves, banks[0])
            rows.append({"score": name, "networks": many, "lds": [round(each, 4) for each in lds.tolist()]})
    pairs = zip(banks[0].T, banks[1].T, strict=True)
    return {
        "settings": {
            "epochs": epochs, "batch": _BATCH, "lr": _RATE, "momentum": _MOMENTUM, "l2": _L2,
            "halves": count, "networks": networks, "parameters": len(flatten_parameters(_network(0))), "threads": 1,
        },
        "accuracy": accuracies,
        "bank_b": [round(agreement.spearman(*pair), 4) for pair in pairs],
        "rows": rows,
    }  # fmt: skip


def _network(seed: int) -> nn.Sequential:
    side = 28 // POOLING
    return two_stage(_LAYERS, (1, side, side), 10, pooling=nn.AvgPool2d, seed=seed, dtype=torch.float32)


def _losses(examples: ExampleLosses) -> ExampleLosses:
    """Return the losses of the same examples for this network."""
    side = 28 // POOLING
    return ExampleLosses(_network(0), examples.inputs.float().view(-1, 1, side, side), examples.labels)


def _run(examples: ExampleLosses, seed: int, epochs: int) -> list[Tensor]:
    """Train by SGD from the weights that ``seed`` draws, as the order of batches; θ ``(P,)`` after each epoch."""
    model, draw, path = _network(seed), torch.Generator().manual_seed(seed), []
    losses = _losses(examples)
    optimiser = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM, weight_decay=_L2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(losses), generator=draw).split(_BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(losses.inputs[chosen]), losses.labels[chosen]).backward()
            optimiser.step()
        path.append(flatten_parameters(model))
    return path


def _accuracy(examples: ExampleLosses, theta: Tensor) -> float:
    losses = _losses(examples)
    return round(float((losses.outputs(theta).argmax(dim=1) == losses.labels).double().mean()), 3)


def _scores(whole: ExampleLosses, queries: ExampleLosses, path: list[Tensor]) -> dict[str, Tensor]:
    """Return for each score its influences ``(n, Q)``; those that need no run of their own are controls."""
    losses, targets, theta = _losses(whole), _losses(queries), path[-1]
    products = [-per_example_gradients(losses, at) @ per_example_gradients(targets, at).T for at in path[1::2]]
    norm = per_example_gradients(losses, theta).norm(dim=1)
    found = {
        "same class": -(losses.labels[:, None] == targets.labels).float(),
        "gradient norm": -norm[:, None].expand(-1, len(targets)),
        "identity": products[-1],
        "TracIn": _RATE * torch.stack(products).sum(dim=0),
    }
    for damping in _DAMPINGS:
        curvature = Curvature(Objective(losses, _L2), theta, damping)
        found[f"EK-FAC, δ = {damping:g}"] = influence_on_each(losses, targets, curvature, solvers.EKFAC())
    return found
