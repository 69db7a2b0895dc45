"""The small problems that the first notebooks work on, all cut from the bundled Fashion-MNIST subset."""

import copy
from dataclasses import dataclass, replace

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite import settings
from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import ExampleLosses, Examples, Objective
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.doors import Count, Nonnegative, Seed, typed
from metasp_lite.images import sets, sources
from metasp_lite.networks import logistic_regression, toy_mlp


@dataclass(frozen=True)
class Problem:
    """A training objective J, a validation loss ℓ(V, ·), where training starts, and the images behind both."""

    model: nn.Module
    objective: Objective
    validation: Objective
    start: Tensor  # θ (P,) before training
    train: sets.ImageSet
    test: sets.ImageSet

    def with_l2(self, l2: float) -> "Problem":
        """Return the same problem with another regularisation λ = ``l2``."""
        return replace(self, objective=Objective(self.objective.losses, l2))

    def accuracy(self, theta: Tensor) -> tuple[float, float]:
        """Shares of the training and of the test examples that the model gets right at θ ``(P,)``, each 0 to 1."""

        def share(losses: ExampleLosses) -> float:
            logits = torch.func.functional_call(self.model, losses.unflatten(theta), (losses.inputs,))
            predicted = logits.argmax(dim=1) if logits.dim() == 2 else (logits > 0).long()
            return float((predicted == losses.labels).double().mean())

        return share(self.objective.losses), share(self.validation.losses)


@typed
def shoes(*, train_per_class: Count = 30, test_per_class: Count = 100, l2: Nonnegative = 0.01) -> Problem:
    """Sneaker (label 0) or ankle boot (label 1) by logistic regression on two numbers per image, so that θ is a point.

    The two numbers are the first two principal components of the training images, each scaled to variance one.
    Inputs ``(n, 2)`` float64, P = 2.
    """
    train, test = _two_classes("train", train_per_class), _two_classes("test", test_per_class)
    components = PCA(n_components=2, whiten=True, svd_solver="full").fit(_vectors(train).cpu().numpy())
    model = logistic_regression(inputs=2).to(settings.device())

    def losses(images: sets.ImageSet) -> ExampleLosses:
        inputs = torch.from_numpy(components.transform(_vectors(images).cpu().numpy())).to(settings.device())
        return ExampleLosses(model, inputs, images.labels.to(settings.device()), binary_cross_entropy)

    return Problem(model, Objective(losses(train), l2), Objective(losses(test)), flatten_parameters(model), train, test)


@typed
def toy(
    *,
    train_per_class: Count = 100,
    test_per_class: Count = 50,
    hidden: Count = 8,
    l2: Nonnegative = 0.03,
    pooling: Count = 1,
    seed: Seed = 1,
) -> Problem:
    """Return the toy of the MetaSP paper's Appendix J: 1000 training and 500 test images, one hidden layer.

    Pixels scaled to 0…1, float64; P = 6,370 with 8 hidden units.  The paper prints neither width nor regularisation
    nor optimiser; those here are ours.  ``seed`` draws the starting weights.  The network sees means of squares of
    ``pooling`` × ``pooling`` pixels: with 2 it has P = 1,666, and hundreds of retrainings can be afforded.

    Raises:
        ValueError: when ``pooling`` does not divide the images' side of 28 pixels.
    """
    if 28 % pooling != 0:
        raise ValueError(f"pooling={pooling} does not divide the side of 28 pixels; give 1, 2, 4, 7, 14 or 28")
    train, test = _bundled("train", train_per_class), _bundled("test", test_per_class)
    model = toy_mlp(inputs=(28 // pooling) ** 2, hidden=hidden, seed=seed).to(settings.device())

    def of(images: sets.ImageSet) -> ExampleLosses:
        pixels = F.avg_pool2d(_vectors(images).view(-1, 1, 28, 28), pooling).flatten(1)
        return ExampleLosses(model, pixels, images.labels.to(settings.device()))

    losses = [of(train), of(test)]
    return Problem(model, Objective(losses[0], l2), Objective(losses[1]), flatten_parameters(model), train, test)


@dataclass(frozen=True)
class _TwoTasks:
    """A network in the middle of its second task, and all that its next step needs."""

    model: nn.Module
    after_old: nn.Module  # a copy of the network as it stood after the old task, before it met the new one
    optimizer: torch.optim.SGD
    batch: Examples  # the next step's: half from the memory, then half of the new task
    from_memory: Tensor  # (n,) bool, which of the batch come from the memory
    old: Examples  # validation set from the memory; shares no example with the batch
    new: Examples  # validation set from the new task's training data; shares no example with the batch
    old_test: Examples
    new_test: Examples
    images: sets.ImageSet  # the batch's, in its order


@typed
def two_tasks(
    *, hidden: Count = 100, memory: Count = 200, validation: Count = 50, batch: Count = 64, seed: Seed = 0
) -> _TwoTasks:
    """Learn Fashion-MNIST's first five classes, then the other five, up to where MetaSP takes its steps.

    200 training images of each class, a tanh network with one hidden layer in float64, plain SGD of step 0.1 with
    batches of 32: ten epochs on the old task, of which ``memory`` images are kept at random; five on the new one
    without rehearsal, and one with (32 new and 32 old images a step).  ``validation`` images in each validation set.
    """
    draw = torch.Generator().manual_seed(seed)
    train, test = _bundled("train", 200), _bundled("test", 100)
    model = toy_mlp(hidden=hidden, seed=seed).to(settings.device())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def examples(index: Tensor, images: sets.ImageSet = train) -> Examples:
        chosen = replace(images, images=images.images[index], labels=images.labels[index])
        return _vectors(chosen), chosen.labels.to(settings.device())

    def shuffled(index: Tensor) -> Tensor:
        return index[torch.randperm(len(index), generator=draw)]

    def epoch(index: Tensor, rehearsed: Tensor | None = None) -> None:
        for chosen in shuffled(index).split(32):
            if rehearsed is not None:
                chosen = torch.cat([shuffled(rehearsed)[:32], chosen])
            inputs, labels = examples(chosen)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    is_old = train.labels < 5
    old, new = is_old.nonzero()[:, 0], (~is_old).nonzero()[:, 0]
    for _ in range(10):
        epoch(old)
    after_old = copy.deepcopy(model)
    kept = shuffled(old)[:memory]
    for _ in range(5):
        epoch(new)
    epoch(new, rehearsed=kept)
    optimizer.zero_grad()
    kept, new = shuffled(kept), shuffled(new)
    half = batch // 2
    chosen = torch.cat([kept[:half], new[:half]])
    return _TwoTasks(
        model,
        after_old,
        optimizer,
        examples(chosen),
        (torch.arange(len(chosen)) < half).to(settings.device()),
        old=examples(kept[half : half + validation]),
        new=examples(new[half : half + validation]),
        old_test=examples((test.labels < 5).nonzero()[:, 0], test),
        new_test=examples((test.labels >= 5).nonzero()[:, 0], test),
        images=replace(train, images=train.images[chosen], labels=train.labels[chosen]),
    )


def _vectors(images: sets.ImageSet) -> Tensor:
    """Pixels as float64 vectors (N, C·H·W) in 0…1, on the device."""
    return images.images.to(settings.device()).flatten(1).double() / 255


def _bundled(split: sets.Split, per_class: int) -> sets.ImageSet:
    """Return the first images of each class from the bundled subset, whatever other sources a machine has."""
    return sets.first_per_class(sources.load("fashion-mnist", split, source="bundled"), per_class)


def _two_classes(split: sets.Split, per_class: int) -> sets.ImageSet:
    whole = _bundled(split, per_class)
    return whole.only([whole.classes.index(name) for name in ("Sneaker", "Ankle boot")])
