"""Methods that never rehearse a remembered example, but turn each step so that it does not harm the remembered ones."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from metasp_lite.buffer import balanced_choice
from metasp_lite.functional import check_finite
from metasp_lite.learner import Batch, Learner
from metasp_lite.methods.base import MemorySettings, Rehearsal, plain_step


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


class TaskMemory(Rehearsal):
    """A memory with an equal share for each task of the stream, drawn when the task ends, even over its classes.

    So what is remembered is always of past tasks.  (GEM's authors keep the last examples of a task, A-GEM's draw them.)
    """

    def __init__(self, learner: Learner, settings: MemorySettings) -> None:
        """Prepare an empty memory.

        Raises:
            ValueError: when there are more tasks than places.
        """
        super().__init__(learner, settings)
        self.share = settings.memory // len(learner.stream.tasks)
        if self.share < 1:
            raise ValueError(
                f"memory={settings.memory} has no place for each of {len(learner.stream.tasks)} tasks; "
                f"give at least {len(learner.stream.tasks)}"
            )

    def end_task(self, learner: Learner) -> None:
        """Store the task's share."""
        stream, train = learner.stream, learner.task.train
        count = min(self.share, len(train))
        chosen = train[balanced_choice(stream.labels[train], count, None, learner.generator)]
        self.buffer.put(self.buffer.free[:count], stream.images[chosen], stream.labels[chosen], learner.task_number)


class GEM(TaskMemory):
    """Step along the gradient that is nearest to the new examples' own and raises the loss of no past task's memory.

    Batch-norm sees the new examples and the memory of each past task as batches of their own, and its running averages
    move with all of them: they describe old and new examples, as in the authors' code.
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
            order = torch.randperm(len(slots), generator=learner.generator)[: self.settings.memory_batch]
            slots = slots[order.to(slots.device)]
        kept = self.buffer.read(slots)
        return learner.gradient(learner.loss(learner.augmented(kept.images), kept.labels))


class AGEM(TaskMemory):
    """GEM with one constraint, that of a batch drawn from the memory of all past tasks.

    Batch-norm as in GEM: two batches, and both move the running averages.
    """

    paper = "Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019"

    def step(self, learner: Learner, batch: Batch) -> Tensor:
        """Descend on the new examples alone, without raising the loss of a batch from the memory."""
        if not len(self.buffer):
            return plain_step(learner, batch)
        kept = self.buffer.sample(self.settings.memory_batch, learner.generator)
        reference = learner.gradient(learner.loss(learner.augmented(kept.images), kept.labels))
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
    products = gram(torch.stack([gradient, reference]))
    if products[0, 1] >= 0:
        return gradient
    return gradient - float(products[0, 1] / products[1, 1]) * reference


def project_gem(gradient: Tensor, references: Tensor, margin: float = 0.5) -> Tensor:
    """g̃ = g + Gᵀv, v = argmin ½‖Gᵀv + g‖² over v ≥ γ, where some g·g_k < 0; else g itself (GEM, eq. 11).

    ``gradient`` g is ``(P,)``, ``references`` G ``(T, P)`` has the past tasks' gradients g_k as rows, ``margin`` is γ.
    The paper's text adds γ to the optimal v of v ≥ 0; its authors' code bounds v by γ, and so do we.  With v = γ + u
    the problem is the same in u ≥ 0 with g + γ Σ g_k in place of g.  So g̃ is the nearest to g + γ Σ g_k with
    g̃·g_k ≥ 0 for all k: the larger γ, the more a step in conflict also descends on the memory.

    Non-negative least squares in T unknowns: all that is needed of G and g are their inner products (float64).  Rows
    are scaled to length 1 first, which leaves the constraints what they are; rows that are 0 constrain nothing.

    Raises:
        FloatingPointError: when an entry is NaN or infinite.
    """
    check_finite(gradient, "the gradient of the new examples")
    check_finite(references, "the gradient of a past task's memory")
    products = gram(torch.cat([references, gradient[None]])).cpu().numpy()
    inner, target = products[:-1, :-1], products[:-1, -1]  # G Gᵀ and G g
    if (target >= 0).all():
        return gradient
    lengths = np.sqrt(inner.diagonal())
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    pushed = scale * (target + margin * inner.sum(axis=1))  # G (g + γ Σ g_k)
    # K = AᵀA of the unit rows; ½ uᵀKu + u·pushed is ½‖Au − b‖² up to a constant if Aᵀb = −pushed, which lies in K's
    # range.  Directions in which dependent rows cancel have eigenvalues of rounding size: dropped.
    values, vectors = np.linalg.eigh(scale[:, None] * inner * scale)
    held = values > len(values) * np.finfo(np.float64).eps * values[-1]
    root, basis = np.sqrt(values[held]), vectors[:, held]
    solution, _ = nnls(root[:, None] * basis.T, -(basis.T @ pushed) / root, maxiter=100 * len(values))
    weights = torch.as_tensor(margin + scale * solution).to(references)
    return gradient + weights @ references


def gram(rows: Tensor, chunk: int = 2**20) -> Tensor:
    """R Rᵀ in float64, ``(n, n)``, of ``rows (n, P)`` in any dtype; ``chunk`` columns at a time, for P may be large."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(chunk, dim=1):
        wide = part.double()
        total += wide @ wide.T
    return total
