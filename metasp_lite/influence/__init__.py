"""What one example is worth: influence by the Hessian, by pseudo-updates and in a MetaSP step, and how to check it."""

from metasp_lite.influence import agreement, published
from metasp_lite.influence.by_autograd import influences_by_autograd
from metasp_lite.influence.hessian import influence, influence_on_each
from metasp_lite.influence.leaving_out import leave_one_out
from metasp_lite.influence.metasp import metasp_gradient, metasp_step, mixed, official, printed, relative
from metasp_lite.influence.pseudo_update import pseudo_update_influence
from metasp_lite.influence.tracin import tracin

__all__ = [
    "agreement",
    "influence",
    "influence_on_each",
    "influences_by_autograd",
    "leave_one_out",
    "metasp_gradient",
    "metasp_step",
    "mixed",
    "official",
    "printed",
    "pseudo_update_influence",
    "published",
    "relative",
    "tracin",
]
