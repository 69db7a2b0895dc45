"""MetaSP on lite Split Fashion-MNIST: its weights' variants, and its rivals.

Two studies, each a list of rows, a row a run: ``study`` (the variants of the weights and ER-late at two learning rates
from five seeds) and ``rivals`` (from ten seeds, at the stream's own rate).
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from metasp_lite import results
from metasp_lite.continual import grid, plan, presets, streams
from metasp_lite.continual.accuracy import SETTINGS
from metasp_lite.continual.buffer import Memories
from metasp_lite.continual.learner import Learner, evaluating
from metasp_lite.continual.methods import Method
from metasp_lite.continual.methods.metasp import MetaSP
from metasp_lite.continual.run import Run
from metasp_lite.continual.streams import Stream
from metasp_lite.continual.training import train
from metasp_lite.influence import agreement

_METHODS = (("er-late", None), *(("metasp", v) for v in ("official", "relative", "mixed", "printed")))
_RATES = (0.1, 0.03)  # the first is the stream's own
_SEEDS = (1231, 1232, 1233, 1234, 1235)  # the paper's
_TEN = tuple(range(1231, 1241))  # the paper's and five more
_MEMORY = 200
_WHAT = {"profile": "lite", "stream": "split-fashion-mnist"}
_RIVALS = ("joint", "fine-tune", "er", "er-late", "metasp", "metasp-rehsel")  # joint first: its network judges memories

_Row = dict[str, object]


def study(seeds: Iterable[int] = _SEEDS, changes: Mapping[str, object] | None = None) -> list[_Row]:
    """Return a row for each run with a variant of the weights: its final accuracy, or the error that stopped it.

    ``changes`` are settings of all runs.
    """
    rows = []
    for method, variant in _METHODS:
        for rate in _RATES:
            chosen = {"lr": rate, **({"variant": variant} if variant else {}), **(changes or {})}
            rows += _runs(method, chosen, seeds)
    return rows


def rivals(seeds: Iterable[int] = _TEN, changes: Mapping[str, object] | None = None) -> list[_Row]:
    """Return a row for each run of MetaSP, its rivals and RehSel: all accuracies, and what was seen inside.

    ``wrong_by_joint`` is the share of what the memory holds at the end (``joint``: of all training examples) that the
    jointly trained network of the same seed gets wrong.  ``between_late_epochs`` and ``size_and_loss`` are of MetaSP, a
    number for each task but the first, of the task's own examples: Spearman's correlation of I* in the last but one
    epoch with I* in the last, and of |I*| in the last with the loss before it.
    """
    rows = []
    for seed in seeds:
        judge: Learner | None = None
        for method in _RIVALS:
            run, stream = _prepared(method, seed, changes)
            inside = _Inside()
            with tempfile.TemporaryDirectory() as folder:
                result = train(run, Path(folder) / method, stream=stream, threads=1, watch=inside, progress_bar=False)
            judge = judge or inside.learner
            ends = {
                f"{name}_{setting}": value if value is None else round(value, 6)
                for setting in SETTINGS
                for name, value in result[setting].items()
            }
            memory = getattr(run.settings, "memory", None)
            row = {**_WHAT, "memory": memory, "method": method, "seed": seed, **ends}
            rows.append({**row, "wrong_by_joint": _wrong(judge, inside, method), **inside.correlations()})
    return rows


class _Inside:
    """Watches a run: keeps the learner and the method, and of MetaSP the scores of each epoch and the losses."""

    def __init__(self) -> None:
        self.learner: Learner
        self.method: Method
        self._sums: list[Tensor] = []  # of I*, after each epoch of the task
        self._losses: list[Tensor] = []
        self._found: dict[str, list[float]] = {"between_late_epochs": [], "size_and_loss": []}

    def __call__(self, learner: Learner, method: Method) -> None:
        self.learner, self.method = learner, method
        if not isinstance(method, MetaSP) or learner.task_number == 0:
            return
        if learner.epoch == 1:
            self._sums, self._losses = [], []
        train = learner.task.train
        self._sums.append(method.influence[train].clone())
        self._losses.append(_losses(learner, train))
        if learner.epochs_left == 0 and method.settings.late_epochs >= 2:
            before, last = (self._sums[k] - self._sums[k - 1] for k in (-2, -1))
            self._found["between_late_epochs"].append(_spearman(before, last))
            self._found["size_and_loss"].append(_spearman(last.abs(), self._losses[-2]))

    def correlations(self) -> dict[str, list[float] | None]:
        """Return what was found, None where there was nothing to find."""
        return {name: values or None for name, values in self._found.items()}


def _wrong(judge: Learner, inside: _Inside, method: str) -> float | None:
    """Return the share of the memory's examples, of ``joint`` of all, that ``judge`` gets wrong."""
    stream = judge.stream
    held: Stream | Memories
    if method == "joint":
        held = stream
    elif (buffer := getattr(inside.method, "buffer", None)) is not None:
        held = buffer.read(buffer.filled)
    else:
        return None
    return round(float((_logits(judge, held.images).argmax(1) != held.labels).float().mean()), 6)


def _logits(learner: Learner, images: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(learner.model):
        return learner.model(learner.stream.augmentation.normalise(images))


def _losses(learner: Learner, index: Tensor) -> Tensor:
    logits = _logits(learner, learner.stream.images[index])
    return F.cross_entropy(logits, learner.stream.labels[index], reduction="none")


def _spearman(first: Tensor, second: Tensor) -> float:
    return round(agreement.spearman(first, second), 4)


def _prepared(method: str, seed: int, changes: Mapping[str, object] | None) -> tuple[Run, Stream]:
    """Return a run, with those of ``changes`` that its method has, and its stream."""
    known = presets.names(method)
    memory = _MEMORY if "memory" in known else None
    own = {name: value for name, value in (changes or {}).items() if name in known}
    run = presets.build(_WHAT["stream"], method, seed, profile="lite", memory=memory, overrides=own)
    return run, streams.make(run.stream)


def _runs(method: str, chosen: Mapping[str, object], seeds: Iterable[int]) -> list[_Row]:
    """Return the rows of one method with the settings ``chosen``."""
    what = {**_WHAT, "memory": _MEMORY, "method": method}
    description = {"profile": "lite", "streams": [what["stream"]], "methods": [method], "memory": [_MEMORY]}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in grid.run_all(plan.jobs({**description, "seeds": [*seeds], "set": chosen}, Path(folder))):
            row = {**what, "variant": chosen.get("variant"), "lr": chosen["lr"], "seed": outcome.job.run.seed}
            row |= {"finished": outcome.state == "finished", "a_inf_class_incremental": None}
            if row["finished"]:
                result = results.read(outcome.job.out / "result.json")
                row["a_inf_class_incremental"] = round(result["class_incremental"]["a_inf"], 6)
            rows.append({**row, "error": outcome.error or None})
    return rows
