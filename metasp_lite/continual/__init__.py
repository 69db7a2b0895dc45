"""Continual learning: streams of tasks, the learner and its memory, thirteen methods, runs that resume exactly."""

from metasp_lite.continual import presets, streams
from metasp_lite.continual.accuracy import summarise
from metasp_lite.continual.learner import Learner, rehearse
from metasp_lite.continual.methods.metasp import MetaSP
from metasp_lite.continual.methods.replay import ER, ERLate
from metasp_lite.continual.place import InUseError
from metasp_lite.continual.training import score, train

__all__ = [
    "ER",
    "ERLate",
    "InUseError",
    "Learner",
    "MetaSP",
    "presets",
    "rehearse",
    "score",
    "streams",
    "summarise",
    "train",
]
