"""Train MetaSP with each variant of its weights, and ER-late, at two learning rates from five seeds; store the ends.

30 runs of lite Split Fashion-MNIST, a few minutes: ``python -m metasp_lite variants``.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from metasp_lite.continual import grid

METHODS = (("er-late", None), ("metasp", "official"), ("metasp", "paper"))  # and the variant of the weights
RATES = (0.1, 0.03)  # the first is the stream's own
SEEDS = (1231, 1232, 1233, 1234, 1235)  # the paper's
MEMORY = 200


def study(seeds: Iterable[int] = SEEDS, changes: Mapping[str, object] | None = None) -> list[dict[str, object]]:
    """Return a row for each run: its final class-incremental accuracy, or the error that stopped it.

    ``changes`` are settings of all runs.
    """
    rows = []
    for method, variant in METHODS:
        for rate in RATES:
            chosen = {"lr": rate, **({"variant": variant} if variant else {}), **(changes or {})}
            rows += _runs(method, chosen, seeds)
    return rows


def _runs(method: str, chosen: Mapping[str, object], seeds: Iterable[int]) -> list[dict[str, object]]:
    """Return the rows of one method with the settings ``chosen``."""
    what = {"profile": "lite", "stream": "split-fashion-mnist", "memory": MEMORY, "method": method}
    description = {"profile": "lite", "streams": [what["stream"]], "methods": [method], "memory": [MEMORY]}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in grid.run_all(grid.jobs({**description, "seeds": [*seeds], "set": chosen}, Path(folder))):
            row = {**what, "variant": chosen.get("variant"), "lr": chosen["lr"], "seed": outcome.job.run.seed}
            row |= {"finished": outcome.state == "finished", "a_inf_class_incremental": None}
            if row["finished"]:
                result = json.loads((outcome.job.out / "result.json").read_text())
                row["a_inf_class_incremental"] = round(result["class_incremental"]["a_inf"], 6)
            rows.append({**row, "error": outcome.error or None})
    return rows
