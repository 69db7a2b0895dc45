"""Studies of two-stage influence, minutes each, by name in ``STUDIES``."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import Objective, SingleLoss
from metasp_lite.calculus.optimum import adam, lbfgs, minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact
from metasp_lite.course.two_stages import PAPER_PROTOCOL, SETUPS, Setup, TwoStages
from metasp_lite.influence import agreement
from metasp_lite.stages import retraining
from metasp_lite.stages.fixed import (
    directional_derivatives,
    fixed_embedding,
    fixed_sensitivity,
    pretraining_influence,
)
from metasp_lite.stages.unrolled import Adam, unrolled_sensitivity
from metasp_lite.stages.updated import JointObjective, ProximalObjective, joint_influence, proximal_sensitivity
from metasp_lite.studies.spoiled import ablations, unfinished


@dataclass(frozen=True)
class Tasks:
    """The classes of pretraining, and of an unrelated task; whether each seed draws images of its own."""

    first: tuple[int, int]
    unrelated: tuple[int, int]
    draws: bool = True


TASKS = {
    "fashion-mnist": Tasks((2, 4), (5, 8), draws=False),  # pullover, coat; sandal, bag; the bundle has too few images
    "mnist": Tasks((3, 5), (0, 1)),
    "cifar10": Tasks((2, 6), (1, 4)),  # the paper's: bird and frog; automobile and deer
}


def protocols(setup: Setup) -> dict[str, retraining.Protocol]:
    """Ways to retrain as the paper does for ``setup.papers``; the first also with batches of each run's own."""
    found = {}
    for paper in setup.papers:
        steps, batch = PAPER_PROTOCOL[paper]
        name = " and ".join(map(str, dict.fromkeys(steps)))  # 100, or 6000 and 3000
        found[f"{name} steps of Adam on shared batches (the paper's for {paper})"] = (steps, batch, True)
    first, *_ = found
    found[first.replace("shared", "own")] = (*found[first][:2], False)
    return {name: retraining.Protocol(Adam(), *settings) for name, settings in found.items()}


def against_retraining(name: str) -> dict[str, object]:
    """Predicted against true leave-one-out changes, with ablations, the paper's protocols and what scoring costs."""
    problem = TwoStages(SETUPS[name])
    pretrained = problem.pretrained()
    finetuned = problem.finetuned(pretrained.theta)
    examples, m = problem.left_out(), len(problem.pretraining_images)
    without = retraining.leave_out(pretrained, examples)
    scores = ablations(problem, pretrained, finetuned)
    scores["300 steps of Adam instead of an optimum"], damping = unfinished(problem, 300)
    predicted = {each: -score[:, examples] / m for each, score in scores.items()}
    truths = {"retrained to the optimum": retraining.fixed(without, finetuned, problem.test)}
    for each, protocol in protocols(problem.setup).items():
        truths[each] = retraining.by_protocol(protocol, pretrained, finetuned, problem.test, examples)
    true, exact = truths["retrained to the optimum"], predicted["both Hessians"]
    tenth = retraining.fixed(retraining.leave_out(pretrained, examples, fraction=0.1), finetuned, problem.test)
    return {
        "setup": dataclasses.asdict(problem.setup),
        "parameters": [len(pretrained.theta), len(finetuned.theta), problem.embedding],
        "gradient_norm": float(pretrained.gradient.norm()),
        "smallest_eigenvalue": pretrained.smallest_eigenvalue,
        "damping_unfinished": damping,
        "examples": examples.tolist(),
        "predicted": {each: table.tolist() for each, table in predicted.items()},
        "true": {each: table.tolist() for each, table in truths.items()},
        "r": agreement.pearson(true.flatten(), exact.flatten()),
        "r_interval": agreement.bootstrap_pearson(true, exact),
        "r_tenth_of_weight": agreement.pearson(tenth.flatten(), exact.flatten()),
        "r_by_truth": {
            truth: {each: agreement.pearson(t.flatten(), p.flatten()) for each, p in predicted.items()}
            for truth, t in truths.items()
        },
        "cost": _scoring_cost(problem, pretrained, finetuned),
    }


def _scoring_cost(problem: TwoStages, pretrained: Curvature, finetuned: Curvature, rounds: int = 3) -> dict[str, float]:
    """CPU seconds of the two solves for one target by conjugate gradients, and of scoring all examples with the result.

    Each the lowest of ``rounds``, which take turns.
    """
    solver, theta = ConjugateGradient(5000, tolerance=1e-6), pretrained.theta
    target = SingleLoss(Objective(problem.test))
    solves, scoring = [], []
    for _ in range(rounds):
        began = time.process_time()
        curvature = Curvature(problem.pretraining, theta)
        sensitivity = fixed_sensitivity(finetuned, target, solver)
        solution = solver(curvature, torch.nn.functional.pad(sensitivity[0], (0, len(theta) - problem.embedding)))
        solves.append(time.process_time() - began)
        began = time.process_time()
        directional_derivatives(problem.pretraining.losses, theta, solution[None], batch=1000)
        scoring.append(time.process_time() - began)
    share = min(scoring) * 1000 / len(problem.pretraining_images) / min(solves)
    return {
        "products_of_pretraining": curvature.products,
        "seconds_of_solves": round(min(solves), 4),
        "seconds_of_scoring": round(min(scoring), 4),
        "share_per_thousand": round(share, 5),
    }


def tasks(name: str, seeds: Sequence[int] = range(5), per_class: int = 300) -> dict[str, object]:
    """Mean |score| where finetuning has the pretraining's own task, and where it has an unrelated one (section 4.3)."""
    chosen, rows = TASKS[name], []
    for seed in seeds:
        drawn = replace(
            SETUPS[name],
            first=chosen.first,
            first_per_class=per_class,
            second_per_class=per_class,
            test_per_class=20,
            seed=seed,
            skip=per_class * seed * chosen.draws,
        )
        pretrained = TwoStages(drawn).pretrained()
        for task, classes in (("same", chosen.first), ("unrelated", chosen.unrelated)):
            problem = TwoStages(replace(drawn, second=classes))
            finetuned = problem.finetuned(pretrained.theta)
            scores = fixed_embedding(pretrained, finetuned, problem.test, Exact())
            row = {"setup": dataclasses.asdict(problem.setup), "seed": seed, "task": task}
            rows.append({**row, "score": float(scores.abs().mean()), "percentiles": _percentiles(scores)})
    return {"rows": rows}


def amounts(
    name: str,
    seeds: Sequence[int] = range(5),
    cases: Sequence[tuple[int, int]] = ((1, 1), (1, 3), (3, 1), (3, 3)),
    per_class: int = 100,
    least_steps: int = 100,
) -> dict[str, object]:
    """Mean |unrolled score| with multiples of the finetuning examples and of ``least_steps`` (section 4.4)."""
    rows = []
    for seed in seeds:
        base = replace(SETUPS[name], seed=seed, second_per_class=per_class)
        pretrained = TwoStages(base).pretrained()
        for examples, steps in cases:
            problem = TwoStages(replace(base, second_per_class=per_class * examples))
            embedding, run = pretrained.theta[: problem.embedding], problem.short_run(least_steps * steps)
            sensitivity = unrolled_sensitivity(run, embedding, problem.head_start, problem.test)
            scores = pretraining_influence(pretrained, sensitivity, Exact())
            row = {"setup": dataclasses.asdict(problem.setup), "seed": seed, "examples": examples, "steps": steps}
            rows.append({**row, "score": float(scores.abs().mean()), "percentiles": _percentiles(scores)})
    return {"rows": rows}


def models_a_to_d(name: str) -> dict[str, object]:
    """One network's rows of ``tasks`` and ``amounts``, changed as the paper does it: models A to D of figures B, C."""
    return {"tasks": tasks(name, [0])["rows"], "amounts": amounts(name, [0], [(1, 1), (3, 3)])["rows"]}


def _percentiles(scores: Tensor) -> list[float]:
    """Return what 0, 1, …, 100 % of the scores lie below, to five digits."""
    return [float(f"{value:.5g}") for value in np.percentile(scores.cpu().numpy(), range(101))]


def lengths(name: str, seeds: Sequence[int] = range(5)) -> dict[str, object]:
    """As ``amounts``, with the same examples and ever longer runs."""
    return amounts(name, seeds, cases=[(1, steps) for steps in (1, 2, 3, 6, 10)])


def updated(
    name: str, alpha: float = 0.01, steps: int = 100, alphas: Sequence[float] = (1e-4, 1e-3, 0.01, 0.1, 1, 10, 100)
) -> dict[str, object]:
    """Scores for an embedding that finetuning updates: each against its own truth, and against real finetuning runs.

    Those of the proximal reading also for other ``alphas``.
    """
    problem = TwoStages(SETUPS[name])
    pretrained, test = problem.pretrained(), problem.test
    fixed = problem.finetuned(pretrained.theta)
    w, m, examples = problem.embedding, len(problem.pretraining_images), problem.left_out()
    without, run = retraining.leave_out(pretrained, examples), problem.short_run(steps)
    real = retraining.finetuned_by(without, run, problem.head_start, test)

    def held(alpha: float) -> Curvature:
        proximal = ProximalObjective(problem.finetuning, pretrained.theta[:w], alpha)
        return Curvature(proximal, minimise(proximal, fixed.theta, tolerance=1e-9))

    near = held(alpha)
    joint = JointObjective(problem.pretraining, problem.finetuning, alpha)
    both = torch.cat([pretrained.theta, fixed.theta[w:]])
    at_joint = Curvature(joint, minimise(joint, both, tolerance=1e-9, adam_steps=200))
    sensitivities = {
        "fixed embedding (Theorem 1)": fixed_sensitivity(fixed, test, Exact()),
        "eq. 15, proximal": proximal_sensitivity(near, test, Exact()),
        "unrolled": unrolled_sensitivity(run, pretrained.theta[:w], problem.head_start, test),
    }
    scores = {each: pretraining_influence(pretrained, t, Exact()) for each, t in sensitivities.items()}
    scores["eq. 15, joint"] = joint_influence(at_joint, test, Exact())
    own = {
        "fixed embedding (Theorem 1)": retraining.fixed(without, fixed, test),
        "eq. 15, proximal": retraining.proximal(without, near, test),
        "eq. 15, joint": retraining.joint(at_joint, test, examples),
        "unrolled": real,
    }
    predicted = {each: -score[:, examples] / m for each, score in scores.items()}
    by_alpha = []
    for each in alphas:
        score = pretraining_influence(pretrained, proximal_sensitivity(held(each), test, Exact()), Exact())
        row = {"alpha": each, "mean_score": float(score.abs().mean())}
        row["r_real"] = agreement.pearson(real.flatten(), -score[:, examples].flatten())
        theorem = scores["fixed embedding (Theorem 1)"]
        row["difference_from_theorem_1"] = float((score - theorem).norm() / theorem.norm())
        by_alpha.append(row)
    return {
        "setup": dataclasses.asdict(problem.setup),
        "by_alpha": by_alpha,
        "alpha": alpha,
        "steps": steps,
        "r_own": {each: agreement.pearson(own[each].flatten(), predicted[each].flatten()) for each in own},
        "r_real": {each: agreement.pearson(real.flatten(), predicted[each].flatten()) for each in own},
    }


def first_optimum(name: str) -> dict[str, object]:
    """The parameters at which the first stage's training ends: anyone can look whether they are an optimum."""
    problem = TwoStages(SETUPS[name])
    theta = problem.pretrained().theta
    return {"setup": dataclasses.asdict(problem.setup), "theta": theta.tolist()}


def optima(name: str) -> dict[str, object]:
    """Where 400 steps of Adam and 2000 of L-BFGS lead with other networks and penalties: only a minimum has influences.

    Of each the gradient norm, the extreme eigenvalues of G'', and how many are not positive.
    """
    base, rows = SETUPS[name], []
    for variant, setup in {
        "as in the notebook": base,
        "maxima": replace(base, pooling="maxima"),
        "a tenth of the penalty": replace(base, l2=base.l2 / 10),
        # with a larger penalty it ends at zero weights
        "Table A's network for CIFAR": replace(base, network="cifar", width=32, size=16, l2=base.l2 / 5),
    }.items():
        problem = TwoStages(setup)
        theta = lbfgs(problem.pretraining, adam(problem.pretraining, problem.first_start, 400), 2000)
        curvature = Curvature(problem.pretraining, theta)
        eigenvalues = torch.linalg.eigvalsh(curvature.dense())
        rows.append(
            {
                "variant": variant,
                "setup": dataclasses.asdict(setup),
                "parameters": len(theta),
                "loss": float(problem.pretraining.losses(theta).mean()),
                "gradient_norm": float(curvature.gradient.norm()),
                "eigenvalues": [float(eigenvalues[0]), float(eigenvalues[-1])],
                "not_positive": int((eigenvalues <= 0).sum()),
            }
        )
    return {"rows": rows}


STUDIES: dict[str, Callable[[str], dict[str, object]]] = {
    "leave-one-out": against_retraining,
    "tasks": tasks,
    "amounts": amounts,
    "distributions": models_a_to_d,
    "lengths": lengths,
    "updated": updated,
    "optima": optima,
    "first-optimum": first_optimum,
}
