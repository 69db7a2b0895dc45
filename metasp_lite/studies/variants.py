"""MetaSP with each variant of its weights, and ER-late beside it, at two learning rates from five seeds.

50 runs of lite Split Fashion-MNIST, a few minutes.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from metasp_lite import results
from metasp_lite.continual import grid

_METHODS = (("er-late", None), *(("metasp", v) for v in ("official", "relative", "mixed", "printed")))
_RATES = (0.1, 0.03)  # the first is the stream's own
_SEEDS = (1231, 1232, 1233, 1234, 1235)  # the paper's
_MEMORY = 200


def study(seeds: Iterable[int] = _SEEDS, changes: Mapping[str, object] | None = None) -> list[dict[str, object]]:
    """Return a row for each run: its final class-incremental accuracy, or the error that stopped it.

    ``changes`` are settings of all runs.
    """
    rows = []
    for method, variant in _METHODS:
        for rate in _RATES:
            chosen = {"lr": rate, **({"variant": variant} if variant else {}), **(changes or {})}
            rows += _runs(method, chosen, seeds)
    return rows


def _runs(method: str, chosen: Mapping[str, object], seeds: Iterable[int]) -> list[dict[str, object]]:
    """Return the rows of one method with the settings ``chosen``."""
    what = {"profile": "lite", "stream": "split-fashion-mnist", "memory": _MEMORY, "method": method}
    description = {"profile": "lite", "streams": [what["stream"]], "methods": [method], "memory": [_MEMORY]}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in grid.run_all(grid.jobs({**description, "seeds": [*seeds], "set": chosen}, Path(folder))):
            row = {**what, "variant": chosen.get("variant"), "lr": chosen["lr"], "seed": outcome.job.run.seed}
            row |= {"finished": outcome.state == "finished", "a_inf_class_incremental": None}
            if row["finished"]:
                result = results.read(outcome.job.out / "result.json")
                row["a_inf_class_incremental"] = round(result["class_incremental"]["a_inf"], 6)
            rows.append({**row, "error": outcome.error or None})
    return rows
