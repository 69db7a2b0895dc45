"""Train MetaSP with each variant of its weights, and ER-late, from five seeds; store how each run ended.

Run it as ``python data/results/variants/make.py``: 15 runs of lite Split Fashion-MNIST, a minute or two.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from metasp_lite import grid, results

OUT = Path(__file__).resolve().parent / "split-fashion-mnist.json"
METHODS = (("er-late", None), ("metasp", "official"), ("metasp", "paper"))  # and the variant of the weights
SEEDS = (1231, 1232, 1233, 1234, 1235)  # the paper's
MEMORY = 200


def study(seeds: Iterable[int] = SEEDS, changes: Mapping[str, object] | None = None) -> list[dict[str, object]]:
    """Return a row for each run: its final class-incremental accuracy, or the error that stopped it.

    ``changes`` are settings of all runs.
    """
    return [row for method, variant in METHODS for row in runs(method, variant, seeds, changes or {})]


def runs(method: str, variant: str | None, seeds: Iterable[int], changes: Mapping[str, object]) -> list[dict]:
    """Return the rows of one method."""
    what = {"profile": "lite", "stream": "split-fashion-mnist", "memory": MEMORY, "method": method, "variant": variant}
    description = {"profile": "lite", "streams": [what["stream"]], "methods": [method], "memory": [MEMORY]}
    chosen = {**changes, **({"variant": variant} if variant else {})}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in grid.run_all(grid.jobs({**description, "seeds": [*seeds], "set": chosen}, Path(folder))):
            row = {**what, "seed": outcome.job.run.seed, "finished": outcome.state == "finished"}
            row |= {"a_inf_class_incremental": None, "error": outcome.error or None}
            if row["finished"]:
                result = json.loads((outcome.job.out / "result.json").read_text())
                row["a_inf_class_incremental"] = round(result["class_incremental"]["a_inf"], 6)
            rows.append(row)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the runs: the stored rows name this number
    results.write(OUT, study())
    print(f"stored in {OUT.relative_to(results.RESULTS_DIR)}")
