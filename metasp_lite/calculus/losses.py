"""The loss of each example as a pure function of the flat parameters θ, objectives made of them, first derivatives."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from metasp_lite.calculus.checks import (
    Losses,
    can_be_looked_at,
    check_finite_if_seen,
    evaluated,
    model_stays,
    no_random_numbers,
    refuse_mixing_layers,
    refuse_shared_layers,
    require_example_losses,
    require_one_each,
)
from metasp_lite.calculus.forward import has_no_rule, outputs_at, plain_gradient
from metasp_lite.calculus.labels import LossFunction, cross_entropy, require_labels
from metasp_lite.calculus.parameters import pieces, require_places, require_theta, require_vector, trained_shapes
from metasp_lite.doors import typed

Examples = tuple[Tensor, Tensor]  # inputs (n, …) and labels (n,)
ScalarLoss = Callable[[Tensor], Tensor]  # θ (P,) -> ()


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
    # On its first forward-mode derivative torch scripts its own rules and warns that this is deprecated; taken here.
    warnings.simplefilter("ignore", FutureWarning)
    jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


class ExampleLosses:
    """The loss of each example as a function of θ: ``losses(theta)`` is L(θ) ``(n,)``, the papers' loss vector.

    θ holds what is trained, the parameters with ``requires_grad``; frozen ones are constants of the model.
    """

    @typed
    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, loss: LossFunction = cross_entropy) -> None:
        """Hold ``inputs (n, …)`` and ``labels (n,)``; trained parameters of the model are never read or changed.

        Raises:
            ValueError: when inputs and labels differ in number, when there are none, when a label does not exist, when
                the model, in training mode, normalises over the batch (a loss of ONE example does not exist then) or
                has dropout (the loss is no function of θ then), or has a layer under two names, or nothing trained.
        """
        if inputs.dim() == 0 or labels.dim() == 0 or len(inputs) != len(labels) or len(inputs) == 0:
            sizes = [len(tensor) if tensor.dim() else "no row of" for tensor in (inputs, labels)]
            raise ValueError(f"{sizes[0]} inputs and {sizes[1]} labels; give as many of both, at least one")
        refuse_mixing_layers(model)
        refuse_shared_layers(model)
        if can_be_looked_at(labels):
            require_labels(labels, loss)
        self.model, self.inputs, self.labels, self.loss = model, inputs, labels, loss
        self._shapes = trained_shapes(model)
        self._seen: torch.dtype | None = None  # that of the θ at which these losses have been looked at

    def __len__(self) -> int:
        """Return n, the number of examples."""
        return len(self.labels)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the views of θ ``(P,)`` under the names of the model's trained parameters."""
        return pieces(theta, self._shapes)

    @typed
    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the losses ``(n,)`` at θ, or ``(B,)`` of the examples in ``index (B,)``.

        The first call with a θ of its dtype looks at a few of them (``require``).

        Raises:
            ValueError: as ``require``; when ``index`` is not at least one place among the n.
        """
        if self._seen != theta.dtype and can_be_looked_at(theta, self.inputs, self.labels):
            with torch._C.DisableTorchFunction():  # a tape that records this call does not see the look
                self.require(theta)
        return self._at(theta, index)

    def require(self, theta: Tensor) -> None:
        """Do nothing for losses that are one for each example and a function of θ ``(P,)`` and that example alone.

        Raises:
            ValueError: when they are not, or when θ or a label is none of this model's.
        """
        self.unflatten(theta)
        first, probe = torch.tensor([0], device=theta.device), theta.detach().clone()
        with torch.no_grad(), model_stays(self.model), no_random_numbers(theta.device):
            require_labels(self.labels, self.loss, evaluated(self.outputs, probe, first))
            require_example_losses(self._at, len(self), probe)
        if not torch.allclose(probe, theta, rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                "the model writes into its parameters at every call (max_norm of an embedding?): the losses are those "
                "of another θ; take that out of its forward pass"
            )
        self._seen = theta.dtype

    @typed
    def outputs(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the network's outputs at θ ``(n, …)``, or of the examples in ``index (B,)``; raises as ``()``."""
        if index is not None:
            require_places(index, len(self), "index")
        return outputs_at(self.model, self.unflatten(theta), self.inputs if index is None else self.inputs[index])

    def _at(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return self.loss(self.outputs(theta, index), self.labels if index is None else self.labels[index])


@typed
@dataclass(frozen=True)
class SingleLoss:
    """A scalar function of θ as the losses of one example ``(1,)``: the mean loss of a test set as one target, say."""

    loss: ScalarLoss

    def __len__(self) -> int:
        """Return 1."""
        return 1

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the loss ``(1,)``, or once for each entry of ``index (B,)``, which are all 0."""
        loss = self.loss(theta)
        if loss.shape not in ((), (1,)):
            raise ValueError(f"the loss has a value of shape {tuple(loss.shape)}: give one number, a mean loss, say")
        losses = loss.view(1)
        return losses if index is None else losses[require_places(index, 1, "index")]


_AnyLosses = TypeVar("_AnyLosses", bound=Losses, covariant=True)


@typed
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


@typed
def losses_at(
    model: nn.Module, parameters: Mapping[str, Tensor], examples: Examples, loss: LossFunction = cross_entropy
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses ``(n,)`` with ``parameters`` in place of the model's, and the buffers that this pass would leave behind.

    For a model in training mode, whose batch-norm mixes the examples and moves its running averages: the model's own
    stay as they are.  Parameters that are not given are the model's.

    Raises:
        ValueError: when a label does not exist, or the losses are not one for each example.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = outputs_at(model, {**parameters, **buffers}, examples[0])
    require_labels(examples[1], loss, outputs)
    return require_one_each(loss(outputs, examples[1]), len(examples[1])), buffers


def require_losses(losses: Losses, theta: Tensor) -> None:
    """Do nothing for losses that are one for each example and a function of θ ``(P,)`` and that example alone.

    The one check of all that takes losses; looks at a few examples.  Where vmap maps over θ it cannot look.

    Raises:
        ValueError: when they are not; says why.
    """
    require_theta(theta)
    if not can_be_looked_at(theta):
        return
    if not hasattr(losses, "__len__"):
        raise ValueError(
            f"the losses are a {type(losses).__name__}, which does not say how many there are: wrap a scalar function "
            "of θ as SingleLoss(function), or give losses with a length"
        )
    if isinstance(losses, ExampleLosses):
        losses.require(theta)
    else:
        require_example_losses(losses, len(losses), theta)


@typed
def gradient(objective: ScalarLoss, theta: Tensor) -> Tensor:
    """∇J(θ) ``(P,)`` of a scalar function of θ.

    Raises:
        ValueError: when θ is not a vector of float32 or float64, or the function does not return one such number.
        FloatingPointError: when a number of it is NaN or infinite.
    """
    require_theta(theta)

    def scalar(theta: Tensor) -> Tensor:
        value = objective(theta)
        if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
            raise ValueError(f"the function has a value {found}: give one number, a mean loss, say, as a tensor ()")
        return value

    if isinstance(objective, Objective):
        require_losses(objective.losses, theta)
    try:
        found = grad(scalar)(theta).clone()
    except RuntimeError as error:
        if not has_no_rule(error):
            raise
        found = plain_gradient(scalar, theta)
    return check_finite_if_seen(found, "the gradient")


@typed
def per_example_gradients(losses: Losses, theta: Tensor) -> Tensor:
    """∇L(θ), the Jacobian of the loss vector, ``(n, P)``: row i is the gradient of ℓ(x_i, θ).

    All at once by vmap, or one by one where it has no rule (an LSTM); any other error is passed on.

    Raises:
        ValueError: when the losses are not one for each example.
        FloatingPointError: when a number of it is NaN or infinite.
    """
    require_losses(losses, theta)

    def one(index: Tensor) -> Tensor:
        return grad(lambda t: losses(t, index.unsqueeze(0)).squeeze(0))(theta)

    every = torch.arange(len(losses), device=theta.device)
    try:
        found = vmap(one)(every).contiguous()
    except RuntimeError as error:
        if not has_no_rule(error):
            raise
        found = torch.stack([_gradient_alone(losses, theta, index) for index in every])
    return check_finite_if_seen(found, "the gradient of an example")


@typed
def loss_directional_derivatives(losses: Losses, theta: Tensor, direction: Tensor) -> Tensor:
    """∇L(θ)·u ``(n,)`` for a direction u ``(P,)``: one forward-mode pass, no gradient of any single example.

    Where something in the losses has no forward mode, by one gradient after the other.

    Raises:
        ValueError: when the losses are not one for each example, or when u is not like θ.
        FloatingPointError: when a number of it is NaN or infinite.
    """
    require_losses(losses, theta)
    require_vector(direction, theta, "the direction")
    return derivatives_along(losses, theta, direction)


def derivatives_along(losses: Losses, theta: Tensor, direction: Tensor) -> Tensor:
    """As ``loss_directional_derivatives``, for losses and a direction that were looked at."""
    try:
        found = require_one_each(jvp(losses, (theta,), (direction,))[1], len(losses)).clone()
    except RuntimeError as error:
        if not has_no_rule(error):
            raise
        every = torch.arange(len(losses), device=theta.device)
        found = torch.stack([_gradient_alone(losses, theta, index) @ direction for index in every])
    return check_finite_if_seen(found, "the derivative of an example's loss")


def _gradient_alone(losses: Losses, theta: Tensor, index: Tensor) -> Tensor:
    return plain_gradient(lambda theta: losses(theta, index.unsqueeze(0)).squeeze(0), theta)
