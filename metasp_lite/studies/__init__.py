"""What is measured and stored in ``data/results``: costs, two stages, variants, uses of scores; and tables of runs.

A study computes and returns; the command of its name prints and stores.
"""

from metasp_lite.studies import (
    comparison,
    gpu,
    method_cost,
    multi_stage,
    peers,
    report,
    step_cost,
    toy_cost,
    training_cost,
    uses,
    variants,
)
from metasp_lite.studies.process import import_beforehand

__all__ = [
    "comparison",
    "gpu",
    "import_beforehand",
    "method_cost",
    "multi_stage",
    "peers",
    "report",
    "step_cost",
    "toy_cost",
    "training_cost",
    "uses",
    "variants",
]
