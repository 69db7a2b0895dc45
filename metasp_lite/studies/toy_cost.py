"""What an influence costs on the toy of notebook 02."""

import time

import torch
from tqdm import tqdm

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import gradient, loss_directional_derivatives
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import EKFAC, KFAC, ConjugateGradient, Exact, Solver
from metasp_lite.course import problems
from metasp_lite.influence.agreement import sign_confusion
from metasp_lite.influence.hessian import influence
from metasp_lite.memory import peak_mib
from metasp_lite.studies.process import in_fresh_process
from metasp_lite.studies.quality import quality

_REPEATS = 5
_L2, _HIDDEN = 0.03, 8
_MOST = 300  # products that are tried
# as a preconditioner: 50 of 785 eigenvalues of what goes into the first layer, and one pass back
_CHEAP_KFAC = KFAC(rank=50, draws=1)
_EKFAC = EKFAC(rank=50)


def study(seeds: int) -> dict[str, object]:
    """Measure the starting weights 0, 1, … in a process of their own each; a row for each."""
    began = time.perf_counter()
    rows = [in_fresh_process(_measure, seed) for seed in tqdm(range(seeds), desc="toy", unit="seed")]
    wall = round(time.perf_counter() - began, 1)
    return {
        "settings": {
            "threads": 1,
            "l2": _L2,
            "hidden": _HIDDEN,
            "repeats": _REPEATS,
            "preconditioner": str(_CHEAP_KFAC),
            "ekfac": str(_EKFAC),
        },
        "runs": rows,
        "wall_seconds": wall,
    }


def _measure(seed: int) -> dict[str, float | int | None]:
    """Train the toy from ``seed`` and measure its influences by the solvers on one thread, turn about."""
    torch.set_num_threads(1)
    problem = problems.toy(l2=_L2, hidden=_HIDDEN, seed=seed)
    theta = minimise(problem.objective, problem.start)
    losses, validation = problem.objective.losses, problem.validation

    def curvature() -> Curvature:
        return Curvature(problem.objective, theta)

    influence(losses, validation, curvature(), ConjugateGradient(1))  # torch's first-use costs are in no measurement

    before, begin = peak_mib(), time.process_time()
    exact = influence(losses, validation, curvature(), Exact())
    exact_seconds, exact_mib = time.process_time() - begin, peak_mib() - before

    def right_signs(preconditioner: KFAC | None) -> tuple[list[int], float]:
        """Right signs after each product, and the products that the preconditioner took."""
        at, target = curvature(), gradient(validation, theta)
        iterates = ConjugateGradient(_MOST, preconditioner=preconditioner).iterates(at, target)
        counts = [
            sign_confusion(exact, -loss_directional_derivatives(losses, theta, solution)).agreement
            for solution in iterates
        ]
        return counts, at.products - len(counts)

    plain, _ = right_signs(None)
    counts, built = right_signs(_CHEAP_KFAC)
    all_plain, all_preconditioned = _stays(plain, len(exact)), _stays(counts, len(exact))
    timed: dict[str, Solver] = {
        "cg": ConjugateGradient(all_plain or _MOST),
        "kfac_cg": ConjugateGradient(all_preconditioned or _MOST, preconditioner=_CHEAP_KFAC),
        "ekfac": _EKFAC,
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(_REPEATS):
        for name, solver in timed.items():
            begin = time.process_time()
            scores = influence(losses, validation, curvature(), solver)
            seconds[name].append(time.process_time() - begin)
    approximate = quality(exact, scores)  # of the last, EK-FAC
    half = _REPEATS // 2
    return {
        "seed": seed,
        "positive": int((exact > 0).sum()),
        "exact_cpu_seconds": round(exact_seconds, 2),
        "exact_extra_mib": round(exact_mib),
        "cg_signs_right_after_20_products": plain[19],
        "cg_products_to_990": next((k for k, count in enumerate(plain, 1) if count >= 990), None),
        "cg_products_to_1000": all_plain,
        "cg_cpu_seconds_to_1000_median": round(sorted(seconds["cg"])[half], 3),
        "cg_cpu_seconds_to_1000_min": round(min(seconds["cg"]), 3),
        "kfac_cg_products_to_build": built,
        "kfac_cg_products_to_990": _with(_stays(counts, 990), built),
        "kfac_cg_products_to_1000": _with(all_preconditioned, built),
        "kfac_cg_cpu_seconds_to_1000_median": round(sorted(seconds["kfac_cg"])[half], 3),
        "kfac_cg_cpu_seconds_to_1000_min": round(min(seconds["kfac_cg"]), 3),
        **{f"ekfac_{name}": approximate[name] for name in ("signs_right", "balanced_accuracy", "pearson", "slope")},
        "ekfac_cpu_seconds_median": round(sorted(seconds["ekfac"])[half], 3),
        "ekfac_cpu_seconds_min": round(min(seconds["ekfac"]), 3),
    }


def _stays(counts: list[int], goal: int) -> int | None:
    """The number of products from which on all counts reach the goal; None where the last does not."""
    first = max((k for k, count in enumerate(counts, 1) if count < goal), default=0) + 1
    return first if first <= len(counts) else None


def _with(products: int | None, built: float) -> float | None:
    """Return the products with those that built the preconditioner."""
    return None if products is None else products + built
