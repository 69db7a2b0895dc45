"""How each library is asked for influences: a function a library, with what it needs beyond a trained model.

All return the influences ``(n,)`` of the training examples on the mean validation loss in our sign and size, and the
lines of each are counted as the code that a user writes.  The libraries are imported by name, where they are called.
"""

import copy
import tempfile
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Examples, Objective
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import Solver
from metasp_lite.influence.hessian import influence


@dataclass(frozen=True)
class Trained:
    """What every contender is given: a trained model, its training examples and λ, and the validation examples."""

    model: nn.Module
    train: Examples
    validation: Examples
    l2: float


def ours(given: Trained, solver: Solver) -> Tensor:
    """Influences (n,) on the mean validation loss by this package; every adapter returns them in our sign and size."""
    objective = Objective(ExampleLosses(given.model, *given.train), given.l2)
    validation = Objective(ExampleLosses(given.model, *given.validation))
    curvature = Curvature(objective, flatten_parameters(given.model))
    return influence(objective.losses, validation, curvature, solver)


def dattri(given: Trained, attributor: str, **settings: Any) -> Tensor:
    """Influences by dattri: all training examples in one batch, and all validation examples as one query."""

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        logits = torch.func.functional_call(given.model, parameters, data[0].flatten(0, -2))
        return F.cross_entropy(logits, data[1].flatten())

    task = import_module("dattri.task").AttributionTask(loss, given.model, given.model.state_dict())
    algorithm = getattr(import_module("dattri.algorithm.influence_function"), attributor)(task, **settings)
    train = DataLoader(TensorDataset(*given.train), batch_size=len(given.train[0]))
    query = DataLoader(TensorDataset(*(part[None] for part in given.validation)), batch_size=1)
    algorithm.cache(train)
    return -algorithm.attribute(train, query)[:, 0].double()


def pydvl(given: Trained, method: str, **settings: Any) -> Tensor:
    """Influences by pyDVL; its model takes all validation examples as one query, ``(1, v, …)``."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.flatten())

    train = DataLoader(TensorDataset(*given.train), batch_size=len(given.train[0]))
    flat = nn.Sequential(nn.Flatten(0, -2), given.model)
    model = getattr(import_module("pydvl.influence.torch"), method)(flat, loss, **settings)
    model.fit(train)
    query = (part[None] for part in given.validation)
    return -model.influences(*query, *given.train)[0].detach()


def captum(given: Trained, **settings: Any) -> Tensor:
    """Influences by Captum's Arnoldi iteration; its Hessian is a sum over the examples, so λ is n times as large."""
    n = len(given.train[0])
    scorer = import_module("captum.influence._core.arnoldi_influence_function").ArnoldiInfluenceFunction(
        given.model,
        TensorDataset(*given.train),
        checkpoint="",
        checkpoints_load_func=lambda model, path: 1.0,  # it is trained already
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
        batch_size=n,
        hessian_reg=n * given.l2,
        **settings,
    )
    return -n * scorer.influence(given.validation).mean(dim=0).detach()


def kronfluence(given: Trained, damping: float | None) -> Tensor:
    """Influences by kronfluence's EK-FAC, in double precision as the model is."""
    library, arguments = import_module("kronfluence"), import_module("kronfluence.arguments")

    class Classification(library.Task):  # type: ignore[name-defined]
        def compute_train_loss(self, batch: Examples, model: nn.Module, sample: bool = False) -> Tensor:
            logits, labels = model(batch[0]), batch[1]
            if sample:
                labels = torch.distributions.Categorical(logits=logits.detach()).sample()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Examples, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task, double = Classification(), torch.float64
    train, queries = TensorDataset(*given.train), TensorDataset(*given.validation)
    model = library.prepare_model(copy.deepcopy(given.model), task)
    fitted = ("activation_covariance_dtype", "gradient_covariance_dtype", "per_sample_gradient_dtype", "lambda_dtype")
    scored = ("per_sample_gradient_dtype", "precondition_dtype", "score_dtype")
    with tempfile.TemporaryDirectory() as folder:
        analyzer = library.Analyzer("toy", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        factors = arguments.FactorArguments(**dict.fromkeys(fitted, double))
        analyzer.fit_all_factors("factors", train, per_device_batch_size=len(train), factor_args=factors)
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            queries,
            train,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=len(train),
            score_args=arguments.ScoreArguments(
                damping_factor=damping, aggregate_query_gradients=True, **dict.fromkeys(scored, double)
            ),
        )
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    return -scores.sum(dim=0).double() / len(queries)
