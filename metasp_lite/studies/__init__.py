"""What is measured and stored in ``data/results``: costs, two stages against retraining, variants, uses of scores.

A study computes and returns; the command of its name prints and stores.
"""

from metasp_lite.studies import multi_stage, step_cost, toy_cost, training_cost, uses, variants
from metasp_lite.studies.process import import_beforehand

__all__ = ["import_beforehand", "multi_stage", "step_cost", "toy_cost", "training_cost", "uses", "variants"]
