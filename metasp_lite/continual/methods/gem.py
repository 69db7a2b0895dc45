"""GEM and A-GEM never rehearse remembered examples, but turn each step so that it does not harm them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.continual.buffer import balanced_choice
from metasp_lite.continual.learner import Batch, Learner
from metasp_lite.continual.methods.base import M_co, MemorySettings, MethodSettings, Rehearsal, plain_step
from metasp_lite.continual.streams import Stream

_CHUNK = 2**16  # entries of each vector that are made float64 at a time: P may be large


@dataclass(frozen=True)
class GEMSettings(MemorySettings):
    """GEM's settings."""

    memory_batch: int = 1000  # at most so many of each past task; a task's share is rarely larger, so all: the paper
    margin: float = 0.5  # γ, the paper's memory strength

    def __post_init__(self) -> None:
        """Refuse margins that no projection has."""
        super().__post_init__()
        if not (0 <= self.margin < math.inf):
            raise ValueError(f"margin={self.margin} must be finite and at least 0")


class _TaskMemory(Rehearsal[M_co]):
    """A memory with an equal share for each task of the stream, drawn when the task ends, even over its classes.

    So what is remembered is always of past tasks.  (GEM's authors keep the last examples of a task, A-GEM's draw them.)
    """

    def __init__(self, learner: Learner, settings: M_co) -> None:
        """Prepare an empty memory.

        Raises:
            ValueError: as ``check``.
        """
        super().__init__(learner, settings)
        self.share = settings.memory // len(learner.stream.tasks)

    @classmethod
    def check(cls, stream: Stream, settings: MethodSettings) -> None:
        """Refuse fewer places than tasks.

        Raises:
            ValueError: when there are more tasks than places.
        """
        tasks = len(stream.tasks)
        if isinstance(settings, MemorySettings) and settings.memory < tasks:
            raise ValueError(f"memory={settings.memory} has no place for each of {tasks} tasks; give at least {tasks}")

    def end_task(self, learner: Learner) -> None:
        """Store the task's share."""
        stream, train = learner.stream, learner.task.train
        count = min(self.share, len(train))
        chosen = train[balanced_choice(stream.labels[train], count, None, learner.draws.storing)]
        self.buffer.put(self.buffer.free[:count], stream.images[chosen], stream.labels[chosen], learner.task_number)


class GEM(_TaskMemory[GEMSettings]):
    """Step along the gradient that is nearest to the new examples' own and raises the loss of no past task's memory.

    Batch-norm sees the new examples and the memory of each past task as batches of their own, and its running averages
    move with all of them: they describe old and new examples, as in the authors' code.  What is our choice: the memory
    is cropped and flipped anew at each step, and its share of a task is even over the classes.
    """

    paper = "Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017"
    Settings = GEMSettings

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on the new examples alone, with one constraint for each past task."""
        if not len(self.buffer):
            return plain_step(learner, batch)
        past = self.buffer.tasks[self.buffer.filled].unique()
        references = torch.stack([self.reference(learner, int(task)) for task in past])
        loss = learner.loss(batch.inputs, batch.labels)
        learner.apply(project_gem(learner.gradient(loss), references, self.settings.margin))
        return loss.detach()

    def reference(self, learner: Learner, task: int) -> Tensor:
        """∇ of the mean loss on what is remembered of ``task``, ``(P,)``."""
        slots = (self.buffer.tasks == task).nonzero()[:, 0]
        if len(slots) > self.settings.memory_batch:
            order = torch.randperm(len(slots), generator=learner.draws.memory)[: self.settings.memory_batch]
            slots = slots[order.to(slots.device)]
        kept = self.buffer.read(slots)
        return learner.gradient(learner.loss(learner.replayed(kept.images), kept.labels))


class AGEM(_TaskMemory[MemorySettings]):
    """GEM with one constraint, that of a batch drawn from the memory of all past tasks.

    Batch-norm as in GEM: two batches, and both move the running averages.
    """

    paper = "Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019"

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on the new examples alone, without raising the loss of a batch from the memory."""
        if not len(self.buffer):
            return plain_step(learner, batch)
        kept = self.buffer.sample(self.settings.memory_batch, learner.draws.memory)
        reference = learner.gradient(learner.loss(learner.replayed(kept.images), kept.labels))
        loss = learner.loss(batch.inputs, batch.labels)
        learner.apply(project_a_gem(learner.gradient(loss), reference))
        return loss.detach()


def project_a_gem(gradient: Tensor, reference: Tensor) -> Tensor:
    """g̃ = g − (g·r / r·r) r where g·r < 0, else g itself (A-GEM, eq. 11): the nearest g̃ with g̃·r ≥ 0.

    ``gradient`` g and ``reference`` r are ``(P,)``; r = 0 constrains nothing.

    Raises:
        FloatingPointError: when an entry is NaN or infinite.
    """
    check_finite(gradient, "the gradient of the new examples")
    check_finite(reference, "the gradient of the memory")
    largest = reference.abs().max()
    unit = reference / torch.where(largest > 0, largest, 1.0)  # no square vanishes or overflows
    along = _inner_products(unit[None], gradient)[0]
    if along >= 0:
        return gradient
    return gradient - float(along / _inner_products(unit[None], unit)[0]) * unit


def project_gem(gradient: Tensor, references: Tensor, margin: float = 0.5) -> Tensor:
    """g̃ = g + Gᵀv, v = argmin ½‖Gᵀv + g‖² over v ≥ γ, where some g·g_k < 0; else g itself (GEM, eq. 11).

    ``gradient`` g is ``(P,)``, ``references`` G ``(T, P)`` has the past tasks' gradients g_k as rows, ``margin`` is γ.
    The paper's text adds γ to the optimal v of v ≥ 0; its authors' code bounds v by γ, and so do we.  With v = γ + u
    the problem is the same in u ≥ 0 with g + γ Σ g_k in place of g.  So g̃ is the nearest to g + γ Σ g_k with
    g̃·g_k ≥ 0 for all k: the larger γ, the more a step in conflict also descends on the memory.

    Rows that are 0 constrain nothing.  Of the others only the direction counts, so that they are scaled to length 1.
    Of rows that depend on each other, or nearly do, infinitely many v are optimal, or those that are, are huge: the
    term ½δ²‖u‖² picks a small one, δ = 6e-8.  It breaks no constraint by more than δ‖g + γ Σ g_k‖, as δ‖u‖ is at most
    that length; where no two rows are nearly opposite it is rounding.

    Raises:
        FloatingPointError: when an entry is NaN or infinite.
    """
    check_finite(gradient, "the gradient of the new examples")
    check_finite(references, "the gradient of a past task's memory")
    largest = references.abs().amax(dim=1)
    rows, scale = references[largest > 0], largest[largest > 0, None]
    rows = rows / scale  # no square vanishes or overflows
    if bool((_inner_products(rows, gradient) >= 0).all()):
        return gradient
    from scipy.optimize import nnls  # here, because it takes half a second that all other methods can save

    start = gradient + margin * references.sum(dim=0)
    r = triangle(torch.cat([rows, start[None]])).cpu().numpy()  # all that is needed of the P numbers of each vector
    lengths = np.linalg.norm(r[:, :-1], axis=0)
    delta = 4 * np.finfo(np.float64).eps ** 0.5
    damped = np.concatenate([r[:, :-1] / lengths, delta * np.eye(len(lengths))])
    solution, _ = nnls(damped, -np.concatenate([r[:, -1], np.zeros(len(lengths))]), maxiter=100 * len(lengths))
    weights = torch.as_tensor(solution / lengths).to(rows.device)
    pieces = zip(rows.split(_CHUNK, dim=1), start.split(_CHUNK), strict=True)
    return torch.cat([(weights @ part.double() + piece).to(gradient) for part, piece in pieces])


def _inner_products(rows: Tensor, vector: Tensor) -> Tensor:
    """R v in float64, ``(n,)``, of ``rows (n, P)`` and ``vector (P,)`` in any dtype.

    In pieces, for memory; the slow twin is ``rows.double() @ vector.double()``.
    """
    pieces = zip(rows.split(_CHUNK, dim=1), vector.split(_CHUNK), strict=True)
    return torch.stack([part.double() @ piece.double() for part, piece in pieces]).sum(dim=0)


def triangle(rows: Tensor) -> Tensor:
    """R of Rᵀ = QR, float64 ``(≤ n, n)``: its columns have the lengths and the angles of ``rows (n, P)``, P large.

    The columns of a Gram matrix would know an angle only to the square root of rounding.  In pieces, for memory; the
    slow twin is ``torch.linalg.qr(rows.T.double())``.
    """
    found = rows.new_zeros(0, len(rows), dtype=torch.float64)
    for part in rows.split(_CHUNK, dim=1):
        found = torch.linalg.qr(torch.cat([found, part.T.double()]), mode="r").R
    return found
