"""What an influence costs on the toy of notebook 02."""

import time

import torch
from tqdm import tqdm

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import gradient, loss_directional_derivatives
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact
from metasp_lite.course import problems
from metasp_lite.influence.agreement import sign_confusion
from metasp_lite.influence.hessian import influence
from metasp_lite.memory import peak_mib
from metasp_lite.studies.process import in_fresh_process

_REPEATS = 5
_L2, _HIDDEN = 0.03, 8


def study(seeds: int) -> dict[str, object]:
    """Measure the starting weights 0, 1, … in a process of their own each; a row for each."""
    began = time.perf_counter()
    rows = [in_fresh_process(_measure, seed) for seed in tqdm(range(seeds), desc="toy", unit="seed")]
    wall = round(time.perf_counter() - began, 1)
    return {
        "settings": {"threads": 1, "l2": _L2, "hidden": _HIDDEN, "repeats": _REPEATS},
        "runs": rows,
        "wall_seconds": wall,
    }


def _measure(seed: int) -> dict[str, float | int | None]:
    """Train the toy from ``seed`` and measure its exact and its conjugate-gradient influences on one thread."""
    torch.set_num_threads(1)
    problem = problems.toy(l2=_L2, hidden=_HIDDEN, seed=seed)
    theta = minimise(problem.objective, problem.start)
    losses, validation = problem.objective.losses, problem.validation
    loss_directional_derivatives(losses, theta, theta)  # so that first-use costs of torch are in no measurement

    before, begin = peak_mib(), time.process_time()
    exact = influence(losses, validation, Curvature(problem.objective, theta), Exact())
    exact_seconds, exact_mib = time.process_time() - begin, peak_mib() - before

    target = gradient(validation, theta)
    iterates = ConjugateGradient(300).iterates(Curvature(problem.objective, theta), target)
    right = [
        sign_confusion(exact, -loss_directional_derivatives(losses, theta, solution)).agreement for solution in iterates
    ]
    all_right = max((k for k, count in enumerate(right, 1) if count < len(exact)), default=0) + 1
    seconds = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        influence(losses, validation, Curvature(problem.objective, theta), ConjugateGradient(all_right))
        seconds.append(time.process_time() - begin)
    return {
        "seed": seed,
        "positive": int((exact > 0).sum()),
        "exact_cpu_seconds": round(exact_seconds, 2),
        "exact_extra_mib": round(exact_mib),
        "cg_signs_right_after_20_products": right[19],
        "cg_products_to_990": next((k for k, count in enumerate(right, 1) if count >= 990), None),
        "cg_products_to_1000": all_right if all_right <= len(right) else None,
        "cg_cpu_seconds_to_1000_median": round(sorted(seconds)[_REPEATS // 2], 3),
        "cg_cpu_seconds_to_1000_min": round(min(seconds), 3),
    }
