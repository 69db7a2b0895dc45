"""A model as a pure function of its flat parameters θ: losses of examples, gradients, Jacobian and Hessian products."""

import math
import warnings
from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

LossFunction = Callable[[Tensor, Tensor], Tensor]  # (logits (B, …), labels (B,)) -> losses (B,)

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


def refuse_dropout(model: nn.Module) -> None:
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
        refuse_dropout(model)
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
class Objective:
    """J(θ) = (1/n) Σ ℓ(x_i, θ) + (λ/2)‖θ‖², what training minimises.

    ``losses`` is an ``ExampleLosses`` or any function ``(theta, index=None) -> (n,)`` with a length; ``l2`` is λ ≥ 0.
    With ``l2=0`` it is the mean loss of a validation set, ℓ(V, θ).
    """

    losses: Callable[..., Tensor]
    l2: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a λ that is negative or not finite."""
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"l2={self.l2} must be a finite number of at least 0")

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the scalar J(θ); with ``index (B,)`` the mean runs over those examples only."""
        return self.losses(theta, index).mean() + 0.5 * self.l2 * theta.dot(theta)


def gradient(objective: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """∇J(θ) ``(P,)`` of a scalar function of θ."""
    return grad(objective)(theta)


def per_example_gradients(losses: Callable[..., Tensor], theta: Tensor) -> Tensor:
    """∇L(θ), the Jacobian of the loss vector, ``(n, P)``: row i is the gradient of ℓ(x_i, θ)."""

    def one(index: Tensor) -> Tensor:
        return grad(lambda t: losses(t, index.unsqueeze(0)).squeeze(0))(theta)

    return vmap(one)(torch.arange(len(losses), device=theta.device))


def loss_directional_derivatives(losses: Callable[..., Tensor], theta: Tensor, direction: Tensor) -> Tensor:
    """∇L(θ)·u ``(n,)`` for a direction u ``(P,)``: one forward-mode pass, no gradient of any single example."""
    return jvp(losses, (theta,), (direction,))[1]


class Curvature:
    """H + δI with H = ∇²J(θ), as a linear operator that counts what it costs.

    The gradient graph is built once and differentiated again for each product, so a product costs about two forward
    passes.  ``products`` counts Hessian-vector products over all n examples; a product over B of them adds B/n.
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float = 0.0) -> None:
        """Evaluate J at θ ``(P,)``.

        Raises:
            ValueError: for a damping δ that is negative or not finite.
            FloatingPointError: when a loss or the gradient is NaN or infinite.
        """
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping={damping} must be a finite number of at least 0")
        self.objective, self.damping, self.products = objective, damping, 0.0
        self.theta = theta.detach().clone()  # an optimiser that moves the caller's θ in place leaves this one
        self._leaf, self._gradient = _gradient_graph(objective, self.theta)

    @property
    def gradient(self) -> Tensor:
        """∇J(θ) ``(P,)``."""
        return self._gradient.detach()

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return (H + δI) v ``(P,)``."""
        self.products += 1
        (product,) = torch.autograd.grad(self._gradient, self._leaf, vector, retain_graph=True)
        return check_finite(product, "a Hessian-vector product") + self.damping * vector

    def on_batch(self, vector: Tensor, index: Tensor) -> Tensor:
        """(H_B + δI) v with the Hessian of the examples in ``index (B,)`` instead of all n."""
        self.products += len(index) / len(self.objective.losses)
        leaf, gradient_ = _gradient_graph(lambda theta: self.objective(theta, index), self.theta)
        (product,) = torch.autograd.grad(gradient_, leaf, vector)
        return check_finite(product, "a Hessian-vector product of a batch") + self.damping * vector

    def dense(self) -> Tensor:
        """H + δI as a matrix ``(P, P)``."""
        first = _first_linear(self.objective.losses)
        if first is None:
            losses = self.objective.losses
            count = len(losses) if isinstance(losses, Sized) else 1  # a plain function does not say
            chunk = max(1, min(64, 4096 // count))  # more at once would not fit in memory
            hessian = _hessian_by_products(self._leaf, self._gradient, chunk)
        else:
            hessian = _hessian_by_first_layer(self.objective.losses, self.theta, first)
            hessian.diagonal().add_(self.objective.l2)
        hessian.diagonal().add_(self.damping)
        return hessian

    @cached_property
    def cholesky(self) -> Tensor:
        """Lower Cholesky factor C ``(P, P)``, C Cᵀ = H + δI.  Kept, so that further solves cost almost nothing.

        Raises:
            NegativeCurvatureError: when H + δI is not positive definite, or singular to rounding; names the smallest
                eigenvalue.
        """
        # H is symmetric, so its transpose is H in LAPACK's column order: factored in place, without a second copy.
        factor = self.dense().mT
        info = torch.empty((), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        pivots = factor.diagonal().square()
        # rounding leaves about √P eps of a pivot that should be zero, and a solution as large as one over that
        rounding = len(factor) ** 0.5 * torch.finfo(factor.dtype).eps
        if info.item() != 0 or pivots.min() <= rounding * pivots.max():
            eigenvalues = torch.linalg.eigvalsh(self.dense())
            singular = eigenvalues[0] > -rounding * eigenvalues[-1]
            raise NegativeCurvatureError(0.0 if singular else float(eigenvalues[0]), self.damping)
        return factor

    @cached_property
    def largest_eigenvalue(self) -> float:
        """λmax of H + δI, by Lanczos to four digits."""
        return self._extreme_eigenvalue("LA")

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """λmin of H + δI, by Lanczos to four digits; negative where θ is not a minimum."""
        return self._extreme_eigenvalue("SA")

    def _extreme_eigenvalue(self, which: str) -> float:
        size = len(self.theta)
        if size < 20:  # Lanczos needs room; the dense matrix is cheaper here anyway
            values = torch.linalg.eigvalsh(self.dense())
            return float(values[-1] if which == "LA" else values[0])

        def product(vector: np.ndarray) -> np.ndarray:
            return (self @ torch.as_tensor(vector.ravel()).to(self.theta)).cpu().numpy()

        operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)  # fixed, so that the answer is too
        try:
            settings = {"v0": start, "tol": 1e-4, "return_eigenvectors": False}
            values = scipy.sparse.linalg.eigsh(operator, k=1, which=which, **settings)
        except scipy.sparse.linalg.ArpackNoConvergence:  # eigenvalues too close together: the dense matrix has them all
            values = torch.linalg.eigvalsh(self.dense())
        return float(values[-1] if which == "LA" else values[0])


class NotConvergedError(RuntimeError):
    """A solver or training did not come as near to its end as was asked of it."""


class NegativeCurvatureError(ArithmeticError):
    """H + δI is not positive definite, so θ is not a (damped) minimum and an influence does not exist there."""

    def __init__(self, curvature: float, damping: float = 0.0, where: str = "here") -> None:
        """Say which ``curvature`` vᵀ(H + δI)v/‖v‖² was met, ``where``, and the way out.

        One of zero was met in a Hessian that is singular.
        """
        self.curvature, self.damping = curvature, damping
        place = where if where == "here" else f"in {where}"
        negative = curvature < 0
        kind, more = ("not positive definite", f" by more than {-curvature:.2g}") if negative else ("singular", "")
        super().__init__(
            f"met curvature {curvature:.3g} with damping {damping:.3g}: the Hessian is {kind} {place}; "
            f"train to a minimum, raise the l2 regularisation, or raise the damping{more}"
        )


def _gradient_graph(objective: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return θ as a leaf and ∇J(θ) with the graph that lets it be differentiated again."""
    leaf = theta.detach().clone().requires_grad_()
    value = check_finite(objective(leaf), "the objective")
    (gradient_,) = torch.autograd.grad(value, leaf, create_graph=True)
    return leaf, check_finite(gradient_, "the gradient of the objective")


def _hessian_by_products(leaf: Tensor, gradient_: Tensor, chunk: int) -> Tensor:
    """H ``(P, P)`` from the graph of ∇J, ``chunk`` columns at a time, for any twice differentiable J."""
    hessian = leaf.new_empty(len(leaf), len(leaf))
    for start in range(0, len(leaf), chunk):
        rows = hessian[start : start + chunk]
        unit = torch.zeros_like(rows)
        unit[:, start : start + chunk].fill_diagonal_(1.0)
        (product,) = torch.autograd.grad(
            gradient_, leaf, unit, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        rows.copy_(product)
    check_finite(hessian.sum(dim=1), "a row sum of the Hessian")
    return hessian


def _first_linear(losses: Callable[..., Tensor]) -> int | None:
    """Return the place of a leading linear layer in the sequential model behind ``losses``, or None.

    None also where it may act otherwise than its layers one after the other: in a subclass, with hooks, or where layers
    share parameters.
    """
    model = getattr(losses, "model", None)
    if type(model) is not nn.Sequential or any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return None
    if len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.named_parameters())):
        return None
    place = next((i for i, module in enumerate(model) if not isinstance(module, nn.Flatten)), None)
    if place == 0 and losses.inputs.dim() != 2:
        return None  # the layer acts on many vectors of one example, and the Gram matrices below know only one
    return place if place is not None and type(model[place]) is nn.Linear else None


def _hessian_by_first_layer(losses: ExampleLosses, theta: Tensor, first: int) -> Tensor:
    """Hessian ``(P, P)`` of the mean loss of a model that begins with a linear layer, z = W x (+ b).

    Derived by the chain rule: the loss sees W and b through z alone, and z is linear in them, so with φ(z, ψ) the loss
    as a function of z and of the other parameters ψ,
    ``∂²/∂W_j∂W_k = (1/n) Σ_i ∂²φ/∂z_j∂z_k x_i x_iᵀ`` and ``∂²/∂W_j∂ψ = (1/n) Σ_i x_i ∂²φ/∂z_j∂ψ``.
    Examples do not meet in φ, so one product per z_j and per ψ_k gives all its second derivatives, and the wide layer,
    which holds nearly all parameters, costs weighted Gram matrices instead of P Hessian-vector products.
    """
    layer, n = losses.model[first], len(losses)
    head = ExampleLosses(losses.model[first + 1 :], losses.inputs, losses.labels, losses.loss)
    width, wide = layer.out_features, sum(parameter.numel() for parameter in layer.parameters())
    weight, psi = theta[: layer.weight.numel()].view_as(layer.weight), theta[wide:]
    x = losses.inputs.flatten(1) if first else losses.inputs
    z = x @ weight.T + (theta[layer.weight.numel() : wide] if layer.bias is not None else 0.0)

    def phi(z: Tensor, psi: Tensor) -> Tensor:
        return losses.loss(functional_call(head.model, head.unflatten(psi), (z,)), losses.labels).sum() / n

    def column(dz: Tensor, dpsi: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(grad(phi, argnums=(0, 1)), (z, psi), (dz, dpsi))[1]

    # Where each W_j, and b_j behind it, stands in θ; x gains a constant input for b.
    places = torch.arange(layer.weight.numel(), device=theta.device).view(width, -1)
    if layer.bias is not None:
        x = torch.cat([x, x.new_ones(n, 1)], dim=1)
        places = torch.cat(
            [places, torch.arange(layer.weight.numel(), wide, device=theta.device).view(width, 1)], dim=1
        )
    hessian = theta.new_empty(len(theta), len(theta))
    for k in range(width):
        dz = torch.zeros_like(z)
        dz[:, k] = 1.0
        dzz, _ = column(dz, torch.zeros_like(psi))  # (n, width): ∂²φ/∂z_j∂z_k of each example
        for j in range(k, width):
            block = x.T @ (dzz[:, j : j + 1] * x)
            hessian[places[j][:, None], places[k]] = block
            hessian[places[k][:, None], places[j]] = block
    for k, unit in enumerate(torch.eye(len(psi), dtype=theta.dtype, device=theta.device)):
        dzpsi, dpsipsi = column(torch.zeros_like(z), unit)
        hessian[places, wide + k] = hessian[wide + k, places] = dzpsi.T @ x
        hessian[wide:, wide + k] = dpsipsi
    check_finite(hessian.sum(dim=1), "a row sum of the Hessian")
    return hessian
