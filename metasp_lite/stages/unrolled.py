"""Finetuning as it is done, a short run of gradient steps, and its derivative: backwards through the run, step by step.

Eq. 15 does not describe such a run (notebook 09).  The sensitivity found here goes into
``stages.pretraining_influence``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from metasp_lite.calculus.checks import check_finite, check_finite_if_seen
from metasp_lite.calculus.losses import Losses, per_example_gradients
from metasp_lite.doors import typed

_State = TypeVar("_State")


class Rule(Protocol[_State]):
    """One step of an optimiser: (θ, state, gradient) to (θ', state'); the first state is None."""

    def step(self, theta: Tensor, state: _State | None, gradient: Tensor, /) -> tuple[Tensor, _State]:
        """Take the step; a function of its arguments that torch can differentiate."""
        ...


_Moments = tuple[Tensor, Tensor, Tensor]  # m, v, t


@typed
@dataclass(frozen=True)
class Adam:
    """The rule of torch.optim.Adam, as a function (Kingma and Ba, 2015)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse numbers for which this is no step of Adam."""
        if not 0 < self.lr < math.inf or not 0 <= self.eps < math.inf:
            raise ValueError(f"lr={self.lr} must be positive and finite, eps={self.eps} finite and at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be two numbers of at least 0, below 1")

    def step(self, theta: Tensor, state: _Moments | None, gradient: Tensor) -> tuple[Tensor, _Moments]:
        """(θ, (m, v, t), g) to (θ', (m', v', t')).  An entry whose gradients were all 0 does not move."""
        first, second = self.betas
        m, v, t = state or (torch.zeros_like(theta), torch.zeros_like(theta), theta.new_zeros(()))
        m, v, t = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2, t + 1
        root = torch.where(v > 0, v, 1).sqrt() * (v > 0)  # √ has no derivative at 0
        step = (m / (1 - first**t)) / (root / (1 - second**t).sqrt() + self.eps)
        return theta - self.lr * step, (m, v, t)


@typed
@dataclass(frozen=True)
class ShortRun(Generic[_State]):
    """A run of gradient steps on given batches: what finetuning is in practice, with no optimum at its end."""

    objective: Callable[[Tensor, Tensor], Tensor]  # (θ, index) -> (); an Objective
    rule: Rule[_State]
    batches: Tensor  # (T, B) int64

    def __post_init__(self) -> None:
        """Refuse batches that are none."""
        if self.batches.dim() != 2 or self.batches.dtype != torch.int64 or self.batches.shape[1] == 0:
            raise ValueError(
                f"batches are {self.batches.dtype} {tuple(self.batches.shape)}; pass int64 (T, B), B at least 1"
            )

    def __call__(self, theta: Tensor) -> Tensor:
        """Run from θ ``(P,)`` to θ_T ``(P,)``.

        Raises:
            ValueError: when a batch names an example that is not there.
            FloatingPointError: when θ_T is not finite: a lower learning rate may help.
        """
        theta = theta.clone()  # a run of no steps ends where it began, not in the caller's storage
        state: _State | None = None
        for index in self.batches:
            theta, state = self.rule.step(theta, state, self._gradient(theta, index))
        return check_finite_if_seen(theta, "a parameter after the run")

    def _gradient(self, theta: Tensor, index: Tensor) -> Tensor:
        return grad(self.objective)(theta, index)

    def pull_back(self, theta: Tensor, target: Losses) -> Tensor:
        """dℓ(θ_T)/dθ of each target, ``(K, P)``: backwards through the run, step by step.

        Keeps θ and the optimiser's state of all T steps; each step is computed once more on the way back.
        """
        path: list[tuple[Tensor, _State | None]] = [(theta, None)]
        for index in self.batches:
            path.append(self.rule.step(*path[-1], self._gradient(path[-1][0], index)))
        back, d_state = per_example_gradients(target, path.pop()[0]), None
        for index, (theta, state) in zip(self.batches.flip(0), reversed(path), strict=True):

            def moved(theta: Tensor, state: _State | None = None, index: Tensor = index) -> tuple[Tensor, _State]:
                return self.rule.step(theta, state, self._gradient(theta, index))

            start = (theta,) if state is None else (theta, state)
            if d_state is None:  # nothing depends on the state after the last step
                pull = vjp(lambda *start: moved(*start)[0], *start)[1]
                found = vmap(pull)(back)
            else:
                pull = vjp(moved, *start)[1]
                found = vmap(pull)((back, d_state))
            back, d_state = (*found, None)[:2]
        return check_finite(back, "the derivative of a target through the run")


@typed
def unrolled_sensitivity(run: ShortRun[_State], embedding: Tensor, head: Tensor, target: Losses) -> Tensor:
    """t = dℓ(θ_T)/dW of each target, ``(K, w)``, for the finetuning run that starts at [W; Θ_0]; needs no optimum.

    ``embedding`` is W ``(w,)``, ``head`` Θ_0 ``(h,)``, which does not depend on W.
    """
    return run.pull_back(torch.cat([embedding, head]), target)[:, : len(embedding)]
