"""Studies of two-stage influence, minutes each: ``python -m metasp_lite stages``; stored in data/results/stages."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metasp_lite import metrics, results, retraining, settings
from metasp_lite.functional import Curvature, NegativeCurvatureError, Objective
from metasp_lite.optimum import adam, lbfgs, minimise
from metasp_lite.solvers import ConjugateGradient, Exact, GaussNewton, Identity, Solver
from metasp_lite.stage_problems import SETUPS, TwoStages
from metasp_lite.stages import (
    Adam,
    Joint,
    Proximal,
    directional_derivatives,
    fixed_embedding,
    fixed_sensitivity,
    joint_influence,
    pretraining_influence,
    proximal_sensitivity,
    target_gradients,
    unrolled_sensitivity,
)

OUT = results.RESULTS_DIR / "stages"
# the classes of pretraining, and of an unrelated task
TASKS = {
    "fashion-mnist": ((2, 4), (5, 8)),  # pullover and coat; sandal and bag
    "mnist": ((3, 5), (0, 1)),
    "cifar10": ((2, 6), (1, 4)),  # the paper's: bird and frog; automobile and deer
}


def ablations(problem: TwoStages, pretrained: Curvature, finetuned: Curvature) -> dict[str, Tensor]:
    """Scores of all pretraining examples with one part of Theorem 1 spoiled at a time, each ``(K, m)``."""
    theta, head, test = pretrained.theta, finetuned.theta, problem.test

    def with_solver(solver: Solver) -> Tensor:
        return fixed_embedding(pretrained, finetuned, test, solver)

    damped = Curvature(problem.pretraining, theta, damping=1e-2), Curvature(problem.finetuning, head, damping=1e-8)
    direct = target_gradients(test, head)[:, : problem.embedding]
    return {
        "both Hessians": with_solver(Exact()),
        "damping 0.01 and 1e-8, the paper's": fixed_embedding(*damped, test, Exact()),
        "Gauss–Newton matrices": with_solver(GaussNewton()),
        "identity matrices": with_solver(Identity()),
        "without the Θ-term": pretraining_influence(pretrained, direct, Exact()),
        "300 steps of Adam instead of an optimum": _unconverged(problem, 300),
    }


def _unconverged(problem: TwoStages, steps: int) -> Tensor:
    """Scores where training stopped early, with the least damping of 0, 0.001, 0.002, 0.004, … that allows them."""
    theta, damping = adam(problem.pretraining, problem.first_start, steps), 0.0
    sensitivity = fixed_sensitivity(problem.finetuned(theta), problem.test, Exact())
    while True:
        try:
            return pretraining_influence(Curvature(problem.pretraining, theta, damping), sensitivity, Exact())
        except NegativeCurvatureError:
            damping = max(2 * damping, 1e-3)


def leave_one_out(name: str) -> dict[str, object]:
    """Predicted against true leave-one-out changes, with ablations, the paper's protocol and what scoring costs."""
    start, problem = time.perf_counter(), TwoStages(SETUPS[name])
    pretrained = problem.pretrained()
    finetuned = problem.finetuned(pretrained.theta)
    examples, m = problem.left_out(), len(problem.pretraining_images)
    without = retraining.leave_out(pretrained, examples)
    scores = ablations(problem, pretrained, finetuned)
    truths = {
        "retrained to the optimum": retraining.fixed(without, finetuned, problem.test),
        "100 steps of Adam, matched batches": _by_protocol(problem, pretrained, finetuned, examples, True),
        "100 steps of Adam, other batches": _by_protocol(problem, pretrained, finetuned, examples, False),
    }
    true = truths["retrained to the optimum"]
    predicted = {each: -score[:, examples] / m for each, score in scores.items()}
    exact = predicted["both Hessians"]
    tenth = retraining.fixed(retraining.leave_out(pretrained, examples, fraction=0.1), finetuned, problem.test)
    return {
        "setup": dataclasses.asdict(problem.setup),
        "parameters": [len(pretrained.theta), len(finetuned.theta), problem.embedding],
        "gradient_norm": float(pretrained.gradient.norm()),
        "smallest_eigenvalue": pretrained.smallest_eigenvalue,
        "examples": examples.tolist(),
        "predicted": exact.tolist(),
        "true": true.tolist(),
        "r": metrics.pearson(true.flatten(), exact.flatten()),
        "r_interval": metrics.bootstrap_pearson(true, exact),
        "r_tenth_of_weight": metrics.pearson(tenth.flatten(), exact.flatten()),
        "r_by_score": {each: metrics.pearson(true.flatten(), p.flatten()) for each, p in predicted.items()},
        "r_by_truth": {each: metrics.pearson(t.flatten(), exact.flatten()) for each, t in truths.items()},
        "cost": scoring_cost(problem, pretrained, finetuned),
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def _by_protocol(
    problem: TwoStages, pretrained: Curvature, finetuned: Curvature, examples: Tensor, matched: bool
) -> Tensor:
    protocol = retraining.Protocol(Adam(), matched=matched)
    return retraining.by_protocol(protocol, pretrained, finetuned, problem.test, examples)


def scoring_cost(problem: TwoStages, pretrained: Curvature, finetuned: Curvature, rounds: int = 3) -> dict[str, float]:
    """CPU seconds of the two solves for one target by conjugate gradients, and of scoring all examples with the result.

    Each the lowest of ``rounds``, which take turns.
    """
    solver, target, theta = ConjugateGradient(5000, tolerance=1e-6), Objective(problem.test), pretrained.theta
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


def tasks(name: str, seeds: Sequence[int] = range(5)) -> dict[str, object]:
    """Mean |score| where finetuning has the pretraining's own task, and where it has an unrelated one (section 4.3)."""
    start, base = time.perf_counter(), SETUPS[name]
    first, unrelated = TASKS[name]
    rows = []
    for seed in seeds:
        common = replace(base, first=first, first_per_class=300, second_per_class=300, test_per_class=20, seed=seed)
        shifted = replace(common, skip=0 if name == "fashion-mnist" else 300 * seed)
        pretrained, row = None, {"seed": seed}
        for task, classes in (("same", first), ("unrelated", unrelated)):
            problem = TwoStages(replace(shifted, second=classes))
            pretrained = pretrained or problem.pretrained()
            finetuned = problem.finetuned(pretrained.theta)
            row[task] = float(fixed_embedding(pretrained, finetuned, problem.test, Exact()).abs().mean())
        rows.append(row)
    return {
        "setup": dataclasses.asdict(common),
        "unrelated": unrelated,
        "rows": rows,
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def amounts(name: str, seeds: Sequence[int] = range(5)) -> dict[str, object]:
    """Mean |unrolled score| with three times the finetuning examples, three times the steps, or both (section 4.4)."""
    start, rows = time.perf_counter(), []
    for seed in seeds:
        base = replace(SETUPS[name], seed=seed, second_per_class=100)
        pretrained = TwoStages(base).pretrained()
        for examples in (1, 3):
            problem = TwoStages(replace(base, second_per_class=100 * examples))
            for steps in (1, 3):
                embedding = pretrained.theta[: problem.embedding]
                run = problem.short_run(100 * steps)
                sensitivity = unrolled_sensitivity(run, embedding, problem.head_start, problem.test)
                score = float(pretraining_influence(pretrained, sensitivity, Exact()).abs().mean())
                rows.append({"seed": seed, "examples": examples, "steps": steps, "score": score})
    return {
        "setup": dataclasses.asdict(base),
        "rows": rows,
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def updated(name: str, alpha: float = 0.01, steps: int = 100) -> dict[str, object]:
    """Scores for an embedding that finetuning updates: each against its own truth, and against real finetuning runs."""
    start, problem = time.perf_counter(), TwoStages(SETUPS[name])
    pretrained, test = problem.pretrained(), problem.test
    fixed = problem.finetuned(pretrained.theta)
    w, m, examples = problem.embedding, len(problem.pretraining_images), problem.left_out()
    without, run = retraining.leave_out(pretrained, examples), problem.short_run(steps)
    real = retraining.finetuned_by(without, run, problem.head_start, test)

    proximal = Proximal(problem.finetuning, pretrained.theta[:w], alpha)
    near = Curvature(proximal, minimise(proximal, fixed.theta, tolerance=1e-9))
    joint = Joint(problem.pretraining, problem.finetuning, alpha)
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
    return {
        "setup": dataclasses.asdict(problem.setup),
        "alpha": alpha,
        "steps": steps,
        "r_own": {each: metrics.pearson(own[each].flatten(), predicted[each].flatten()) for each in own},
        "r_real": {each: metrics.pearson(real.flatten(), predicted[each].flatten()) for each in own},
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def optima(name: str) -> dict[str, object]:
    """Where 400 steps of Adam and 2000 of L-BFGS lead with other networks and penalties: only a minimum has influences.

    Of each the gradient norm, the extreme eigenvalues of G'', and how many are not positive.
    """
    start, base, rows = time.perf_counter(), SETUPS[name], []
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
    return {"rows": rows, "wall_seconds": round(time.perf_counter() - start, 1)}


STUDIES: dict[str, Callable[[str], dict[str, object]]] = {
    "leave-one-out": leave_one_out,
    "tasks": tasks,
    "amounts": amounts,
    "updated": updated,
    "optima": optima,
}


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Register ``stages``."""
    command = subparsers.add_parser("stages", help="measure two-stage influence against retraining, and store it")
    command.add_argument("studies", nargs="*", metavar=f"{{{','.join(STUDIES)}}}", help="default: all")
    command.add_argument("--data", default="fashion-mnist", choices=SETUPS, help="default: fashion-mnist")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the studies asked for and write one file for each."""
    unknown = sorted(set(arguments.studies) - set(STUDIES))
    if unknown:
        raise ValueError(f"there is no study {', '.join(map(repr, unknown))}; choose from {', '.join(STUDIES)}")
    torch.set_num_threads(1)  # as the notebook does: small products gain nothing from more
    for study in arguments.studies or STUDIES:
        path = OUT / f"{study}-{arguments.data}.json"
        results.write(path, STUDIES[study](arguments.data))
        print(path.relative_to(settings.PROJECT_DIR))
    return 0
