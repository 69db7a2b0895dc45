"""Steps of SGD taken to be differentiated with respect to the weights of their examples (MetaSP, section 4.2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite, no_random_numbers, require_one_each
from metasp_lite.calculus.losses import Losses, Objective, ScalarLoss, gradient, require_losses
from metasp_lite.calculus.tape import Tape
from metasp_lite.doors import typed

Parameters = tuple[Tensor, ...]
_LossesOfParameters = Callable[[Parameters], Tensor]  # parameters -> loss of each of the n examples (n,)


def mean_and_gradient(losses: _LossesOfParameters, parameters: Sequence[Tensor]) -> tuple[Tensor, Parameters]:
    """Return the mean of the losses ``()`` and its gradient, one tensor for each of ``parameters``."""
    leaves = _leaves(parameters)
    mean = losses(leaves).mean()
    return mean.detach(), torch.autograd.grad(mean, leaves, materialize_grads=True)


def momentum_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor | None:
    """The momentum b that the optimiser holds for ``parameter``; None before its first step, and where it has none."""
    return optimizer.state.get(parameter, {}).get("momentum_buffer")


@typed
@dataclass(frozen=True)
class SGDRule:
    """One step of stochastic gradient descent as torch.optim.SGD takes it, and its derivative.

    g̃ = g + λθ,  b' = βb + g̃,  θ' = θ − a(g̃ + βb') with Nesterov momentum, else θ' = θ − a b'.
    ``lr`` a > 0, ``momentum`` β ≥ 0, ``weight_decay`` λ ≥ 0.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers for which this is no descent."""
        numbers = (self.lr, self.momentum, self.weight_decay)
        if not all(map(math.isfinite, numbers)) or min(numbers) < 0 or self.lr == 0:
            raise ValueError(f"{self} must have a positive lr, and momentum and weight_decay of at least 0")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum above 0, as in torch.optim.SGD; give one, or leave it out")

    @classmethod
    def of(cls, group: dict) -> Self:
        """Read the rule of a parameter group of torch.optim.SGD.

        Raises:
            ValueError: for dampening or maximize, which are not followed here.
        """
        for name in ("dampening", "maximize"):
            if group[name]:
                raise ValueError(f"{name}={group[name]} is not followed by a pseudo-update; leave it out")
        return cls(float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]), bool(group["nesterov"]))

    def step(self, theta: Tensor, momentum: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """(θ, b, g) to (θ', b'); a momentum of None is zero, and takes no memory."""
        decayed = gradient.add(theta, alpha=self.weight_decay) if self.weight_decay else gradient
        momentum = decayed if momentum is None else decayed.add(momentum, alpha=self.momentum)
        move = decayed.add(momentum, alpha=self.momentum) if self.nesterov else momentum
        return theta.sub(move, alpha=self.lr), momentum

    def adjoint(self, d_theta: Tensor, d_momentum: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(∂ℓ/∂θ', ∂ℓ/∂b') to (∂ℓ/∂g, ∂ℓ/∂b), None for zero; with g held fixed, ∂ℓ/∂θ is ∂ℓ/∂θ' + λ ∂ℓ/∂g."""
        through_momentum = d_theta * (-self.lr * (self.momentum if self.nesterov else 1.0))
        if d_momentum is not None:
            through_momentum += d_momentum
        d_gradient = through_momentum.sub(d_theta, alpha=self.lr) if self.nesterov else through_momentum
        return d_gradient, through_momentum * self.momentum if self.momentum else None


class PseudoUpdate:
    """K steps of SGD on one batch from θ to θ_K, without moving θ; then what the real step needs, on the same graph.

    The batch's gradient is g(θ, E) = (1/n) Σ (1 + E_i) ∇ℓ(x_i, θ) at E = 0.  ``parameters`` is θ_K; ``influences``
    differentiates losses at θ_K with respect to E; ``gradient`` is that of a weighted loss at θ.  For K = 1 they cost,
    counted in forward passes over the batch, 3 for the step, 2 for each influence and 2 for the gradient.  The slow
    twin goes through torch's own optimiser: ``influences_by_autograd`` (``test_metasp_equals_by_autograd``).
    """

    def __init__(
        self,
        losses: _LossesOfParameters,
        parameters: Sequence[Tensor],
        rules: Sequence[SGDRule],
        momenta: Sequence[Tensor | None],
        *,
        steps: int = 1,
    ) -> None:
        """Take ``steps`` steps, K ≥ 1, from ``parameters``, each by its rule and momentum (None is zero, as at first).

        ``losses`` must do the same at every call.  Keeps K−1 copies of the parameters besides the first step's graph.

        Raises:
            ValueError: for fewer than one step, or losses that are not one number for each example, draw random
                numbers or do not depend on one of the parameters.
            FloatingPointError: when a loss or a moved parameter is NaN or infinite.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: take at least one pseudo-step")
        self._function, self._rules, self._leaves = losses, tuple(rules), _leaves(parameters)
        self._tape = Tape()
        with self._tape.record(), no_random_numbers(self._leaves[0].device):
            self._losses = losses(self._leaves)
        require_one_each(self._losses, self._losses.numel())
        self.losses = check_finite(self._losses.detach(), "the loss of an example")  # L(θ), before the step
        gradient_ = torch.autograd.grad(self._losses.mean(), self._leaves, retain_graph=True, allow_unused=True)
        unused = [(place, tuple(leaf.shape)) for place, leaf in enumerate(self._leaves) if gradient_[place] is None]
        if unused:
            raise ValueError(
                f"the losses do not depend on these parameters (place, shape): {unused}; freeze what the network does "
                "not use by requires_grad_(False)"
            )
        path = [tuple(leaf.detach() for leaf in self._leaves)]
        momentum = tuple(momenta)
        for k in range(steps):
            if k > 0:
                _, gradient_ = mean_and_gradient(losses, path[-1])
            states = zip(self._rules, path[-1], momentum, gradient_, strict=True)
            moved = [rule.step(theta, m, g) for rule, theta, m, g in states]
            path.append(tuple(theta for theta, _ in moved))
            momentum = tuple(m for _, m in moved)
        check_finite(torch.stack([theta.abs().max() for theta in path[-1]]), "a parameter after the pseudo-update")
        self.parameters: Parameters = path[-1]  # θ_K
        self._between = path[1:-1]  # θ_1 … θ_{K−1}

    def influences(self, *validation_gradients: Sequence[Tensor]) -> list[Tensor]:
        """∂ℓ/∂E at E = 0, ``(n,)`` for each ``validation_gradients`` ∇ℓ(θ_K); negative helps.

        With c_k = ∂ℓ/∂g_k it is (1/n) Σ_k ∇L(θ_k) c_k, where ∂ℓ/∂θ_k = ∂ℓ/∂θ_{k+1} + (λ + H(θ_k)) c_k.  For K = 1 and
        plain SGD that is −(a/n) ∇L(θ) ∇ℓ(θ').

        Raises:
            FloatingPointError: when an influence is NaN or infinite.
        """
        n = len(self.losses)
        totals = [torch.zeros_like(self.losses) for _ in validation_gradients]
        chains = [_Chain(self._rules, target) for target in validation_gradients]
        for theta in reversed(self._between):
            leaves = _leaves(theta)
            weights = self.losses.new_full((n,), 1 / n).requires_grad_()
            gradient_ = torch.autograd.grad(self._function(leaves) @ weights, leaves, create_graph=True)
            for total, chain in zip(totals, chains, strict=True):
                direction = chain.back_to_gradient()
                tangent, *products = torch.autograd.grad(
                    gradient_, (weights, *leaves), direction, retain_graph=True, materialize_grads=True
                )
                total += tangent / n
                chain.back_to_parameters(direction, products)
        for total, chain in zip(totals, chains, strict=True):  # one direction at a time: each is as large as θ
            total += self._tape.derivative(self._function, self._leaves, chain.back_to_gradient()) / n
        return totals

    def gradient(self, weights: Tensor) -> Parameters:
        """∇_θ Σ w_i ℓ(x_i, θ) for ``weights (n,)``, the real step's; frees the graph, so it comes last and once."""
        return torch.autograd.grad(self._losses, self._leaves, weights)


class _Chain:
    """∂ℓ/∂θ and ∂ℓ/∂b carried backwards through steps of SGD."""

    def __init__(self, rules: Sequence[SGDRule], d_theta: Sequence[Tensor]) -> None:
        self._rules, self._d_theta = rules, list(d_theta)
        self._d_momentum: list[Tensor | None] = [None] * len(self._d_theta)

    def back_to_gradient(self) -> list[Tensor]:
        """Return ∂ℓ/∂g of the step."""
        states = zip(self._rules, self._d_theta, self._d_momentum, strict=True)
        pairs = [rule.adjoint(d_theta, d_momentum) for rule, d_theta, d_momentum in states]
        self._d_momentum = [m for _, m in pairs]
        return [g for g, _ in pairs]

    def back_to_parameters(self, d_gradient: Sequence[Tensor], hessian_products: Sequence[Tensor]) -> None:
        """Go on to the θ the step began at, given ∂ℓ/∂g and H ∂ℓ/∂g there."""
        self._d_theta = [
            d + rule.weight_decay * g + product
            for rule, d, g, product in zip(self._rules, self._d_theta, d_gradient, hessian_products, strict=True)
        ]


def _leaves(parameters: Sequence[Tensor]) -> Parameters:
    return tuple(parameter.detach().requires_grad_() for parameter in parameters)


@typed
def pseudo_update_influence(
    objective: Objective[Losses], validation: ScalarLoss, theta: Tensor, *, step: float, steps: int = 1
) -> Tensor:
    """MetaSP's influence: differentiate ℓ(V, θ_K) after K pseudo-update steps with respect to the weights E; (n,).

    θ_{k+1} = θ_k − a ∇(J + EᵀL/n)(θ_k); at E = 0 the derivative is −(a/n) Σ_{k<K} ∇L(θ_k) u_{k+1} with
    u_K = ∇ℓ(V, θ_K) and u_k = (I − aH(θ_k)) u_{k+1} (derived in notebook 02).  The result is n times that, so that
    it has the scale of ``influence``, where an example's weight is not divided by n.  Exact at any θ ``(P,)``,
    stationary or not.  At a stationary point it equals the Neumann series of ``steps`` terms.  Keeps K·P numbers.
    Its slow twin, the whole run differentiated, is in the tests (``test_pseudo_update_influence_equals_by_autograd``).

    Raises:
        ValueError: for a step that is not positive, or fewer than one step.
        FloatingPointError: when a pseudo-update leaves the finite numbers; lower the step.
    """
    if not step > 0 or steps < 1:
        raise ValueError(f"step={step}, steps={steps}: the step must be positive and there must be at least one")
    require_losses(objective.losses, theta)
    rule = SGDRule(step, weight_decay=objective.l2)
    pseudo = PseudoUpdate(lambda parameters: objective.losses(*parameters), [theta], [rule], [None], steps=steps)
    (total,) = pseudo.influences([gradient(validation, *pseudo.parameters)])
    return len(total) * total
