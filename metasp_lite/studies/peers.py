"""What other libraries' influences cost on the toy of notebook 02, and how good they are; ours beside them.

None of the libraries is needed by this package: they are imported by name where they are called, and one that is not
installed is left out by name.  ``make bench-peers`` installs them in a virtual environment of their own.
"""

import ast
import inspect
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import EKFAC, KFAC, ConjugateGradient, Exact
from metasp_lite.course import problems
from metasp_lite.memory import forget_peak, peak_mib
from metasp_lite.studies import adapters
from metasp_lite.studies.process import import_beforehand, in_fresh_process
from metasp_lite.studies.quality import quality

_L2, _HIDDEN = 0.03, 8
_CALLS = 3  # that are timed, after a first one that has the first-use costs of torch and of the library
_SLOW = 5.0  # CPU seconds; what takes longer is called once
_OURS = "metasp_lite"
_UNMEASURED = {
    "bergson": "installed without its dependencies, transformers among them: No module named 'datasets'",
    "captum NaiveInfluenceFunction": "not tried: forms the Hessian and all its eigenvectors, P = 6,370",
    "dattri IFAttributorExplicit": "not tried: forms the Hessian, P = 6,370",
    "pyDVL EkfacInfluence": "500 queries, update_diagonal=True: gave up after a minute of wall time on a busy machine",
    "pyDVL DirectInfluence": "not tried: forms the Hessian, as dattri's explicit solver does",
    "traker": "not tried: projects gradients at random and has another score than the influence",
}


@dataclass(frozen=True)
class _Contender:
    """A distribution and its module, what of it is measured, how it is called."""

    library: str
    module: str
    method: str
    adapter: Callable[..., Tensor]
    given: tuple[object, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, trained: adapters.Trained) -> Tensor:
        return self.adapter(trained, *self.given, **self.settings)

    def described(self) -> str:
        """Return what it is called with."""
        return ", ".join([*map(str, self.given), *(f"{name}={value}" for name, value in self.settings.items())])


_CONTENDERS = (
    _Contender(_OURS, _OURS, "exact", adapters.ours, (Exact(),)),
    _Contender(_OURS, _OURS, "conjugate gradients", adapters.ours, (ConjugateGradient(70),)),
    _Contender(
        _OURS,
        _OURS,
        "KFAC-preconditioned CG",
        adapters.ours,
        (ConjugateGradient(35, preconditioner=KFAC(rank=50, draws=1)),),
    ),
    _Contender(_OURS, _OURS, "EKFAC", adapters.ours, (EKFAC(rank=50),)),
    _Contender(
        "dattri",
        "dattri.algorithm.influence_function",
        "conjugate gradients",
        adapters.dattri,
        ("IFAttributorCG",),
        {"max_iter": 70, "mode": "rev-fwd", "regularization": _L2},
    ),
    _Contender(
        "captum",
        "captum.influence._core.arnoldi_influence_function",
        "Arnoldi",
        adapters.captum,
        (),
        {"arnoldi_dim": 100, "arnoldi_tol": 1e-6, "projection_dim": 100},
    ),
    _Contender(
        "pyDVL",
        "pydvl.influence.torch",
        "conjugate gradients",
        adapters.pydvl,
        ("CgInfluence",),
        {"maxiter": 70, "rtol": 1e-6, "regularization": _L2},
    ),
    _Contender("kronfluence", "kronfluence", "EK-FAC", adapters.kronfluence, (), {"damping": _L2}),
)


def study(seeds: int) -> dict[str, object]:
    """Measure the contenders that are installed, each in a process of its own, from starting weights 0, 1, …."""
    began = time.perf_counter()
    missing = _missing({contender.library for contender in _CONTENDERS})
    installed = [contender for contender in _CONTENDERS if contender.library not in missing]
    rows, failed = [], {}
    import_beforehand(__name__, *(contender.module for contender in installed))
    for seed in tqdm(range(seeds), desc="peers", unit="seed"):
        theta, exact = in_fresh_process(_truth, seed)
        for contender in installed:
            measured = in_fresh_process(_measured, contender, seed, theta, exact)
            if "error" in measured:
                failed[f"{contender.library} {contender.method}"] = measured["error"]
            else:
                rows.append({**_row(contender), "seed": seed, **measured})
    return {
        "settings": {
            "threads": 1,
            "l2": _L2,
            "hidden": _HIDDEN,
            "calls": _CALLS,
            "called_once_from_cpu_seconds": _SLOW,
            "unmeasured": {**_UNMEASURED, **missing, **failed},
        },
        "runs": rows,
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def _missing(libraries: set[str]) -> dict[str, str]:
    """Name the distributions that are not installed."""
    found = {}
    for name in sorted(libraries):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed: run make bench-peers"
    return found


def _trained(seed: int, theta: Tensor) -> adapters.Trained:
    """Return the toy of that seed with the parameters θ ``(P,)``."""
    problem = problems.toy(l2=_L2, hidden=_HIDDEN, seed=seed)
    losses, validation = problem.objective.losses, problem.validation.losses
    problem.model.load_state_dict(losses.unflatten(theta))
    return adapters.Trained(problem.model, (losses.inputs, losses.labels), (validation.inputs, validation.labels), _L2)


def _truth(seed: int) -> tuple[list[float], list[float]]:
    """Train the toy; θ at the optimum, and the exact influences there."""
    torch.set_num_threads(1)
    problem = problems.toy(l2=_L2, hidden=_HIDDEN, seed=seed)
    theta = minimise(problem.objective, problem.start)
    return theta.tolist(), adapters.ours(_trained(seed, theta), Exact()).tolist()


def _measured(contender: _Contender, seed: int, theta: list[float], exact: list[float]) -> dict[str, Any]:
    """Call a contender for its memory and its scores, then for its seconds; or say why it does not run."""
    torch.set_num_threads(1)
    trained, true = _trained(seed, torch.tensor(theta, dtype=torch.float64)), torch.tensor(exact, dtype=torch.float64)
    try:
        import_module(contender.module)
        torch.manual_seed(seed)  # of labels that a library draws
        forget_peak()
        before = peak_mib()
        first, scores = _timed(contender, trained)
        mib = peak_mib() - before
        seconds = [first] if first > _SLOW else sorted(_timed(contender, trained)[0] for _ in range(_CALLS))
    except Exception as error:  # whatever a library of others raises is written down
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "cpu_seconds_median": round(statistics.median(seconds), 3),
        "cpu_seconds_min": round(seconds[0], 3),
        "extra_mib": round(mib),
        **quality(true, scores),
    }


def _timed(contender: _Contender, trained: adapters.Trained) -> tuple[float, Tensor]:
    """CPU seconds of one call, and what it returned."""
    begin = time.process_time()
    scores = contender(trained)
    return time.process_time() - begin, scores


def _row(contender: _Contender) -> dict[str, object]:
    """Say what was measured."""
    return {
        "library": contender.library,
        "version": metadata.version(contender.library),
        "method": contender.method,
        "called_with": contender.described(),
        "lines": _lines(contender.adapter),
    }


def _lines(adapter: Callable[..., object]) -> int:
    """Count an adapter's lines of code, without its signature, docstring, comments and blank lines."""
    source = textwrap.dedent(inspect.getsource(adapter))
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)
