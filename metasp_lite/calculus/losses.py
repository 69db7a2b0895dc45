"""The loss of each example as a pure function of the flat parameters θ, objectives made of them, first derivatives."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

Examples = tuple[Tensor, Tensor]  # inputs (n, …) and labels (n,)
LossFunction = Callable[[Tensor, Tensor], Tensor]  # (logits (B, …), labels (B,)) -> losses (B,)
ScalarLoss = Callable[[Tensor], Tensor]  # θ (P,) -> ()


class Losses(Protocol):
    """The losses of n examples as a function of θ ``(P,)``."""

    def __len__(self) -> int:
        """Return n."""
        ...

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the losses ``(n,)``, or ``(B,)`` of the examples in ``index (B,)``."""
        ...


class Penalised(Protocol):
    """J(θ), a mean loss and a quadratic penalty: what training minimises, and what a ``Curvature`` is of."""

    @property
    def losses(self) -> Losses:
        """Return the losses that the mean runs over."""
        ...

    @property
    def l2(self) -> float | Tensor:
        """Return λ, the second derivative of the penalty: one number, or one for each parameter ``(P,)``."""
        ...

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the scalar J(θ); with ``index (B,)`` the mean runs over those examples only."""
        ...


with warnings.catch_warnings():
    # On its first forward-mode derivative torch scripts its own rules and warns that scripting is deprecated, which
    # no caller can change.  The first one is taken here, so that the warning stays here too.
    warnings.simplefilter("ignore", FutureWarning)
    jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def flatten_parameters(model: nn.Module) -> Tensor:
    """Return a copy of all parameters as one vector θ ``(P,)``, in the order of ``model.parameters()``."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example: logits ``(B, C)`` and labels ``(B,)`` to losses ``(B,)`` in nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example of a binary model: logits ``(B,)``, labels 0 or 1 ``(B,)``, losses ``(B,)``."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")


def check_finite(values: Tensor, what: str) -> Tensor:
    """Return ``values`` unchanged.

    Raises:
        FloatingPointError: when a number in it is NaN or infinite; names ``what`` and the first place.
    """
    if not torch.isfinite(values).all():
        where = int((~torch.isfinite(values.flatten())).nonzero()[0])
        raise FloatingPointError(
            f"{what} is {values.flatten()[where].item()} at position {where}; "
            "check the inputs for NaN, lower the step size or raise the regularisation"
        )
    return values


def _refuse_dropout(model: nn.Module) -> None:
    """Do nothing for a model whose losses are a function of θ.

    Raises:
        ValueError: when a dropout layer is in training mode and draws anew at every call; names the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"layer {name!r} draws anew at every call; set its p to 0 or call model.eval() first")


def refuse_shared_layers(model: nn.Module) -> None:
    """Do nothing for a model in which every layer has one name.

    A layer under two names would be left with parameters that are not its own by torch's functional_call (pytorch issue
    164759).

    Raises:
        ValueError: when there is one; names it.
    """
    names: dict[nn.Module, str] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        first = names.setdefault(layer, name)
        if first != name and layer.state_dict():
            raise ValueError(
                f"layers {first!r} and {name!r} are one; give it one name and call it twice, or let two layers share "
                "their parameters (b.weight = a.weight)"
            )


class ExampleLosses:
    """The loss of each example as a function of θ: ``losses(theta)`` is L(θ) ``(n,)``, the papers' loss vector."""

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, loss: LossFunction = cross_entropy) -> None:
        """Hold ``inputs (n, …)`` and ``labels (n,)``; the model's own parameters are never read again or changed.

        Raises:
            ValueError: when inputs and labels differ in number, when there are none, or when the model, in training
                mode, normalises over the batch (a loss of ONE example does not exist then) or has dropout (the loss
                is no function of θ then), or has a layer under two names.
        """
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels; give as many of both, at least one")
        normalised = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
        ]
        if normalised:
            raise ValueError(f"layer {normalised[0]!r} mixes the examples of a batch; call model.eval() first")
        _refuse_dropout(model)
        refuse_shared_layers(model)
        self.model, self.inputs, self.labels, self.loss = model, inputs, labels, loss
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]

    def __len__(self) -> int:
        """Return n, the number of examples."""
        return len(self.labels)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the views of θ ``(P,)`` under the model's parameter names."""
        pieces = theta.split(self._sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the losses ``(n,)`` at θ, or ``(B,)`` of the examples in ``index (B,)``."""
        inputs, labels = (self.inputs, self.labels) if index is None else (self.inputs[index], self.labels[index])
        return self.loss(functional_call(self.model, self.unflatten(theta), (inputs,)), labels)


@dataclass(frozen=True)
class SingleLoss:
    """A scalar function of θ as the losses of one example ``(1,)``: the mean loss of a test set as one target, say."""

    loss: ScalarLoss

    def __len__(self) -> int:
        """Return 1."""
        return 1

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the loss ``(1,)``, or once for each entry of ``index (B,)``, which are all 0."""
        losses = self.loss(theta).view(1)
        return losses if index is None else losses[index]


_AnyLosses = TypeVar("_AnyLosses", bound=Losses, covariant=True)


@dataclass(frozen=True)
class Objective(Generic[_AnyLosses]):
    """J(θ) = (1/n) Σ ℓ(x_i, θ) + (λ/2)‖θ‖², what training minimises.

    ``l2`` is λ ≥ 0.  With ``l2=0`` it is the mean loss of a validation set, ℓ(V, θ).
    """

    losses: _AnyLosses
    l2: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a λ that is negative or not finite."""
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"l2={self.l2} must be a finite number of at least 0")

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the scalar J(θ); with ``index (B,)`` the mean runs over those examples only."""
        return self.losses(theta, index).mean() + 0.5 * self.l2 * theta.dot(theta)


def losses_at(
    model: nn.Module, parameters: Mapping[str, Tensor], examples: Examples, loss: LossFunction = cross_entropy
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses ``(n,)`` with ``parameters`` in place of the model's, and the buffers that this pass would leave behind.

    For a model in training mode, whose batch-norm mixes the examples and moves its running averages: the model's own
    stay as they are.  Parameters that are not given are the model's.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return loss(functional_call(model, {**parameters, **buffers}, (examples[0],)), examples[1]), buffers


def gradient(objective: ScalarLoss, theta: Tensor) -> Tensor:
    """∇J(θ) ``(P,)`` of a scalar function of θ."""
    return grad(objective)(theta)


def per_example_gradients(losses: Losses, theta: Tensor) -> Tensor:
    """∇L(θ), the Jacobian of the loss vector, ``(n, P)``: row i is the gradient of ℓ(x_i, θ)."""

    def one(index: Tensor) -> Tensor:
        return grad(lambda t: losses(t, index.unsqueeze(0)).squeeze(0))(theta)

    return vmap(one)(torch.arange(len(losses), device=theta.device))


def loss_directional_derivatives(losses: Losses, theta: Tensor, direction: Tensor) -> Tensor:
    """∇L(θ)·u ``(n,)`` for a direction u ``(P,)``: one forward-mode pass, no gradient of any single example."""
    return jvp(losses, (theta,), (direction,))[1]
