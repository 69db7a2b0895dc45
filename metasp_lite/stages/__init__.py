"""Influence of pretraining examples on a finetuned network (Multi-Stage Influence Function), and its truth."""

from metasp_lite.influence.pseudo_update import SGDRule
from metasp_lite.stages import retraining
from metasp_lite.stages.fixed import fixed_embedding, fixed_sensitivity, head_objective, pretraining_influence
from metasp_lite.stages.unrolled import ShortRun, unrolled_sensitivity
from metasp_lite.stages.updated import ProximalObjective, proximal_sensitivity

__all__ = [
    "ProximalObjective",
    "SGDRule",
    "ShortRun",
    "fixed_embedding",
    "fixed_sensitivity",
    "head_objective",
    "pretraining_influence",
    "proximal_sensitivity",
    "retraining",
    "unrolled_sensitivity",
]
