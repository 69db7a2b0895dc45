"""What influence scores are good for, on the toy of notebook 03, minutes each: what retraining says, stored to compare.

``halves`` has networks retrained on random halves of the training set, ``removal`` without the examples that a score
ranks first, ``labels`` how well scores find labels that were made wrong.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from metasp_lite.calculus import solvers
from metasp_lite.calculus.curvature import Curvature, NotConvergedError
from metasp_lite.calculus.losses import ExampleLosses, Objective, gradient, per_example_gradients
from metasp_lite.calculus.optimum import lbfgs, minimise
from metasp_lite.course import problems
from metasp_lite.influence.hessian import influence_on_each

_POOLING, L2 = 2, 0.01  # the toy of notebook 02, seen at 14×14 pixels
_PER_CLASS = 5
_NEAR, _FAR = 150, 300  # steps of L-BFGS, from a neighbouring optimum and from new weights
_Row = dict[str, object]


def small_toy(seed: int = 1, l2: float = L2) -> problems.Problem:
    """Return the problem of these studies."""
    return problems.toy(pooling=_POOLING, l2=l2, seed=seed)


def cut(losses: ExampleLosses, chosen: Tensor) -> ExampleLosses:
    """Return the losses of the examples ``chosen``, indices or a mask ``(n,)``."""
    return ExampleLosses(losses.model, losses.inputs[chosen], losses.labels[chosen], losses.loss)


def _queries_of(labels: Tensor, per_class: int = _PER_CLASS) -> Tensor:
    """Return the places of the first ``per_class`` of each class, class by class."""
    return torch.cat([(labels == c).nonzero()[:per_class, 0] for c in range(10)])


def random_halves(count: int, n: int) -> Tensor:
    """Return random halves of n examples ``(count, n)``, true where an example is in."""
    draw = torch.Generator().manual_seed(0)
    chosen = torch.zeros(count, n, dtype=torch.bool)
    for row in chosen:
        row[torch.randperm(n, generator=draw)[: n // 2]] = True
    return chosen


def halves(count: int = 100, several: int = 50, whole: int = 8) -> _Row:
    """Losses of 50 queries under networks trained on random halves, and on the whole set from ``whole`` seeds.

    "continued" goes on from the optimum of the whole set, for ``count`` halves; "new weights, bank A" and "B" start
    each network from weights of its own, for the first ``several``.  A row a network.
    """
    problem = small_toy()
    tested = problem.validation.losses
    queries = cut(tested, places := _queries_of(tested.labels))
    theta = minimise(problem.objective, problem.start)
    chosen, left = random_halves(count, len(problem.objective.losses)), list[float]()

    def bank(starts: Callable[[int], Tensor], rows: Tensor, steps: int) -> list[list[float]]:
        objectives = [Objective(cut(problem.objective.losses, row), L2) for row in rows]
        return [
            _rounded(queries(_trained(each, starts(k), steps, left=left))) for k, each in enumerate(tqdm(objectives))
        ]

    banks = {
        "continued": bank(lambda _: theta, chosen, _NEAR),
        "new weights, bank A": bank(lambda k: small_toy(1000 + k).start, chosen[:several], _FAR),
        "new weights, bank B": bank(lambda k: small_toy(2000 + k).start, chosen[:several], _FAR),
    }
    others = [_trained(problem.objective, small_toy(3000 + k).start, _FAR, left=left) for k in range(whole)]
    return {
        "settings": _SETTINGS,
        "gradient_norm": {"median": statistics.median(left), "largest": max(left)},
        "objective": round(float(problem.objective(theta)), 6),
        "queries": places.tolist(),
        "halves": ["".join("01"[int(each)] for each in row) for row in chosen],
        "losses": banks,
        "whole_set_losses": [_rounded(queries(each)) for each in others],
        "whole_set_validation": [round(float(problem.validation(each)), 6) for each in others],
    }


_SETTINGS = {"pooling": _POOLING, "l2": L2, "seed": 1, "steps": [_NEAR, _FAR], "threads": 1}


def _trained(objective: Objective[ExampleLosses], start: Tensor, steps: int, *, left: list[float]) -> Tensor:
    """Return where ``steps`` of L-BFGS lead; ``left`` is told what norm of the gradient they leave."""
    theta = lbfgs(objective, start, steps)
    left.append(float(gradient(objective, theta).norm()))
    return theta


def _minimum(objective: Objective[ExampleLosses], start: Tensor) -> Tensor:
    """Return an optimum; where training from the start ends at a saddle, one that is reached from a little beside it.

    Raises:
        NotConvergedError: when five starts led to no minimum.
    """
    draw = torch.Generator().manual_seed(0)
    for trial in range(5):
        beside = start + 0.03 * trial * torch.randn(start.shape, generator=draw, dtype=start.dtype)
        try:
            return minimise(objective, beside, tolerance=1e-6, lbfgs_steps=1000)
        except (ArithmeticError, NotConvergedError):
            continue
    raise NotConvergedError("five starts led to no minimum; raise the l2 regularisation")


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def removal(counts: tuple[int, ...] = (10, 30, 100), per_class: int = 1) -> _Row:
    """Losses of ``per_class`` queries a class after retraining without the first k of each ranking, from θ̂.

    ``losses[ranking][query]`` has a number for each k of ``counts``; ``before`` is that of the whole set.
    """
    problem = small_toy()
    tested = problem.validation.losses
    queries = cut(tested, places := _queries_of(tested.labels, per_class))
    losses, theta = problem.objective.losses, minimise(problem.objective, problem.start)
    ranks = rankings(losses, queries, Curvature(problem.objective, theta))
    found: dict[str, list[list[float]]] = {}
    left: list[float] = []
    for name, order in tqdm(ranks.items()):
        found[name] = []
        for q, column in enumerate(order.T):
            after = []
            for k in counts:
                kept = torch.ones(len(losses), dtype=torch.bool)
                kept[column[:k]] = False
                retrained = _trained(Objective(cut(losses, kept), L2), theta, _NEAR, left=left)
                after.append(float(queries(retrained, torch.tensor([q]))))
            found[name].append(_rounded(torch.tensor(after)))
    return {
        "settings": _SETTINGS,
        "gradient_norm": {"median": statistics.median(left), "largest": max(left)},
        "counts": list(counts),
        "queries": places.tolist(),
        "before": _rounded(queries(theta)),
        "losses": found,
    }


def rankings(losses: ExampleLosses, queries: ExampleLosses, curvature: Curvature) -> dict[str, Tensor]:
    """Return the order in which each ranking drops examples for each query, indices ``(n, Q)``.

    Scores drop what helps the query most; "nearest of its class" drops by the distance of pixels, examples of other
    classes last; "random of its class" too, but without looking; "random" looks at nothing.
    """
    kinds: dict[str, solvers.Solver] = {"exact": solvers.Exact(), "identity": solvers.Identity()}
    ranks = {
        name: influence_on_each(losses, queries, curvature, solver).argsort(dim=0) for name, solver in kinds.items()
    }
    other = (losses.labels[:, None] != queries.labels).double()
    distance = torch.cdist(losses.inputs, queries.inputs)
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(other.shape, generator=draw, dtype=torch.float64)
    ranks["nearest of its class"] = (1e3 * other + distance).argsort(dim=0)
    ranks["random of its class"] = (other + noise / 2).argsort(dim=0)
    ranks["random"] = noise.argsort(dim=0)
    return ranks


def labels(seeds: int = 3, rates: tuple[float, ...] = (0.1, 0.3), l2s: tuple[float, ...] = (L2,)) -> _Row:
    """ROC-AUC of scores that look for labels made wrong, and the share found among the first 5, 10, … % inspected.

    A row for each network: λ, the share of wrong labels, and the seed that draws starting weights and wrong labels.
    """
    rows = []
    for l2 in l2s:
        for rate in rates:
            for seed in tqdm(range(seeds)):
                spoiled = Mislabelled.of(small_toy(seed + 1, l2), rate, seed)
                scores = spoiled.suspicions()
                rows.append(
                    {
                        "l2": l2,
                        "rate": rate,
                        "seed": seed,
                        "accuracy": [round(share, 3) for share in spoiled.problem.accuracy(spoiled.theta)],
                        "auc": {name: round(spoiled.auc(score), 4) for name, score in scores.items()},
                        "found": {name: spoiled.curve(score) for name, score in scores.items()},
                    }
                )
    return {"settings": _SETTINGS, "rows": rows}


@dataclass(frozen=True)
class Mislabelled:
    """The toy, trained with some labels wrong."""

    problem: problems.Problem
    losses: ExampleLosses  # with the labels that were trained on
    objective: Objective[ExampleLosses]
    theta: Tensor  # (P,), the optimum
    wrong: Tensor  # (n,) bool
    clean: ExampleLosses  # validation, 20 of each class
    noisy: ExampleLosses  # the same images, with as many wrong labels as in training

    @classmethod
    def of(cls, problem: problems.Problem, rate: float, seed: int) -> "Mislabelled":
        """Make the share ``rate`` of the labels wrong, each another class at random, and train to the optimum."""
        draw, losses = torch.Generator().manual_seed(seed), problem.objective.losses
        labels, wrong = spoil(losses.labels, rate, draw)
        spoiled = ExampleLosses(problem.model, losses.inputs, labels)
        objective = Objective(spoiled, problem.objective.l2)
        clean = cut(problem.validation.losses, _queries_of(problem.validation.losses.labels, 20))
        noisy = ExampleLosses(problem.model, clean.inputs, spoil(clean.labels, rate, draw)[0])
        return cls(problem, spoiled, objective, _minimum(objective, problem.start), wrong, clean, noisy)

    def suspicions(self) -> dict[str, Tensor]:
        """Return for each score how suspicious it finds each example ``(n,)``, more is worse."""
        gradients, curvature = per_example_gradients(self.losses, self.theta), Curvature(self.objective, self.theta)
        five = cut(self.clean, _queries_of(self.clean.labels, 5))
        targets = {"clean V": self.clean, "clean V, 5 a class": five, "noisy V": self.noisy}
        found = {
            "loss": self.losses(self.theta),
            "gradient norm": gradients.norm(dim=1),
            "self-influence": (gradients * curvature.solve(gradients.T).T).sum(dim=1),
        }
        for name, target in targets.items():
            found[f"influence, {name}"] = -gradients @ curvature.solve(gradient(Objective(target), self.theta))
        found["identity, clean V"] = -gradients @ gradient(Objective(self.clean), self.theta)
        return found

    def auc(self, score: Tensor) -> float:
        """Return the area under the curve of true against false alarms, 0 to 1; guessing has 1/2."""
        return float(roc_auc_score(self.wrong.numpy(), score.numpy()))

    def curve(self, score: Tensor) -> list[float]:
        """Return the share of the wrong labels among the 0, 5, 10, …, 100 % that ``score`` finds most suspicious."""
        found = self.wrong[score.argsort(descending=True)].double().cumsum(0) / self.wrong.sum()
        n = len(score)
        return [0.0, *(round(float(found[n * step // 20 - 1]), 4) for step in range(1, 21))]


def spoil(labels: Tensor, rate: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the labels with the share ``rate`` of them made another of the ten at random, and which ``(n,)``."""
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.randperm(len(labels), generator=draw)[: round(rate * len(labels))]] = True
    moved = (labels + torch.randint(1, 10, labels.shape, generator=draw)) % 10
    return torch.where(wrong, moved, labels), wrong
