"""MetaSP's influences by plain autograd: slow and wasteful, with nothing derived by hand.

The slow twin of ``metasp.metasp_gradient``, which is tested and measured against it.  It differentiates through torch's
own optimiser, so neither the rule of the step nor its derivative is written here a second time.
"""

import torch
from torch import Tensor, nn

from metasp_lite.calculus.losses import Examples, LossFunction, cross_entropy, losses_at
from metasp_lite.doors import typed
from metasp_lite.influence.metasp import trained_parameters
from metasp_lite.influence.pseudo_update import momentum_of


@typed
def influences_by_autograd(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    batch: Examples,
    *validation_sets: Examples,
    pseudo_steps: int = 1,
    loss: LossFunction = cross_entropy,
) -> tuple[list[Tensor], list[Tensor]]:
    """∂ℓ(V, θ_K)/∂E at E = 0, ``(n,)``, and ℓ(V, θ_K) ``()``, for each of ``validation_sets`` V.

    θ_K is reached from the model's θ by ``pseudo_steps`` steps of the optimiser, which has one parameter group, on
    (1/n) Σ (1 + E_i) ℓ(x_i, θ); all of them stay in one graph, which is differentiated backwards.  Model and optimiser
    stay as they are.

    Raises:
        ValueError: when the optimiser has several groups, when ``pseudo_steps`` is below 1, or when
            ``metasp.trained_parameters`` refuses model and optimiser.
    """
    trained = {name: parameter for name, (parameter, _) in trained_parameters(model, optimizer).items()}
    if len(optimizer.param_groups) > 1 or pseudo_steps < 1:
        raise ValueError(
            f"{len(optimizer.param_groups)} parameter groups and pseudo_steps={pseudo_steps}: the oracle takes one "
            "group and at least one step"
        )
    (group,) = optimizer.param_groups

    def losses(parameters: list[Tensor], examples: Examples) -> Tensor:
        return losses_at(model, dict(zip(trained, parameters, strict=True)), examples, loss)[0]

    parameters = [p.detach().requires_grad_() for p in trained.values()]
    momenta = [momentum_of(optimizer, parameter) for parameter in trained.values()]
    if group["momentum"]:  # torch would leave a first momentum out of the graph: it copies the gradient there
        momenta = [torch.zeros_like(p) if m is None else m for p, m in zip(parameters, momenta, strict=True)]
    weights = torch.zeros(len(batch[1]), dtype=parameters[0].dtype, device=parameters[0].device, requires_grad=True)
    for _ in range(pseudo_steps):
        objective = ((1 + weights) * losses(parameters, batch)).mean()
        gradient = torch.autograd.grad(objective, parameters, create_graph=True)
        parameters = [p.clone() for p in parameters]  # the optimiser moves its tensors in place
        settings = {key: group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
        step = torch.optim.SGD([nn.Parameter(torch.empty(0))], **settings, differentiable=True)
        step.param_groups[0]["params"] = parameters  # not leaves, which the constructor would refuse
        for parameter, slope, momentum in zip(parameters, gradient, momenta, strict=True):
            parameter.grad = slope
            if momentum is not None:
                step.state[parameter]["momentum_buffer"] = momentum.clone()  # it moves this in place too
        step.step()
        momenta = [momentum_of(step, parameter) for parameter in parameters]
    influences, values = [], []
    for place, examples in enumerate(validation_sets, start=1):
        value = losses(parameters, examples).mean()
        kept = place < len(validation_sets)  # the last one frees the graph
        influences.append(torch.autograd.grad(value, weights, retain_graph=kept)[0])
        values.append(value.detach())
    return influences, values
