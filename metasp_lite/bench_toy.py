"""What an influence costs on the toy of notebook 02, written to data/results/bench/toy.json."""

import time

import torch
from tqdm import tqdm

from metasp_lite import problems, results, settings
from metasp_lite.bench_process import in_fresh_process, peak_mib
from metasp_lite.functional import Curvature, gradient, loss_directional_derivatives
from metasp_lite.influence import influence
from metasp_lite.metrics import sign_confusion
from metasp_lite.optimum import minimise
from metasp_lite.solvers import ConjugateGradient, Exact

OUT = results.RESULTS_DIR / "bench" / "toy.json"
REPEATS = 5
TOY = {"l2": 0.03, "hidden": 8}


def run(seeds: int) -> None:
    """Measure the starting weights 0, 1, … in a process of their own each; print a line each and store all."""
    began = time.perf_counter()
    rows = [in_fresh_process(measure, seed) for seed in tqdm(range(seeds), desc="toy", unit="seed")]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    wall = round(time.perf_counter() - began, 1)
    results.write(OUT, {"settings": {"threads": 1, **TOY, "repeats": REPEATS}, "runs": rows, "wall_seconds": wall})
    print(f"stored in {OUT.relative_to(settings.PROJECT_DIR)}")


def measure(seed: int) -> dict[str, float | int | None]:
    """Train the toy from ``seed`` and measure its exact and its conjugate-gradient influences on one thread."""
    torch.set_num_threads(1)
    problem = problems.toy(**TOY, seed=seed)
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
    for _ in range(REPEATS):
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
        "cg_cpu_seconds_to_1000_median": round(sorted(seconds)[REPEATS // 2], 3),
        "cg_cpu_seconds_to_1000_min": round(min(seconds), 3),
    }
