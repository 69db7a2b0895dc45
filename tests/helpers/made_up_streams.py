"""Streams of made-up images, a training without files on them, and what a memory then holds."""

import torch

from metasp_lite.continual.streams import split
from metasp_lite.images.sets import ImageSet

CPU = torch.device("cpu")


def noise_stream(
    *, classes=6, per_class=10, classes_per_task=2, shape=(1, 8, 8), padding=1, flip=True, seed=0, **kinds
):
    """Images of noise; each class is brighter in a row of its own, so that a network can learn them.

    ``kinds`` are what ``split`` takes beside: trusted examples, wrong labels.
    """
    draw = torch.Generator().manual_seed(seed)

    def part(count):
        labels = torch.arange(classes).repeat_interleave(count)
        images = torch.randint(0, 160, (len(labels), *shape), generator=draw)
        images[torch.arange(len(labels)), :, labels % shape[1]] += 95
        return ImageSet(images.to(torch.uint8), labels, tuple(map(str, range(classes))), "noise", "made up")

    train, test = part(per_class), part(4)
    return split(train, test, classes_per_task=classes_per_task, padding=padding, flip=flip, device=CPU, **kinds)


def counted_stream(sizes, classes_per_task):
    """A stream with ``sizes[k]`` training images of class k, each of which says which one it is."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = torch.arange(len(labels)).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    images[0, 0, 1, 1] = 255  # no channel is the same everywhere
    train = ImageSet(images, labels, tuple(map(str, range(len(sizes)))), "counted", "made up")
    test = train.take(torch.tensor(sizes).cumsum(0) - 1)  # one of each class, since no task goes unscored
    return split(train, test, classes_per_task=classes_per_task, device=CPU)


def follow(learner, method, *, tasks=None, each_epoch=lambda: None):
    """Train as the trainer does, without its files."""
    for number in range(tasks or len(learner.stream.tasks)):
        learner.task_number, learner.epoch = number, 0
        method.begin_task(learner)
        while learner.epoch < learner.recipe.epochs:
            each_epoch()
            for index in learner.batches(method.examples(learner)):
                method.step(learner, learner.batch(index))
            learner.epoch += 1
        method.end_task(learner)


def same(model, other):
    """Whether two networks are equal bit for bit, their running averages too."""
    mine, yours = model.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def same_state(a, b):
    """Whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


def memory_after_each_task(stream, method, learner):
    """Yield, after each task, the examples by slot as they were and as they are: {slot: example}."""

    def held():
        slots = method.buffer.filled
        examples = method.buffer.images[slots, 0, 0, 0].tolist()
        assert method.buffer.labels[slots].tolist() == stream.labels[examples].tolist()
        return dict(zip(slots.tolist(), examples, strict=True))

    for number in range(len(stream.tasks)):
        before = held()
        learner.task_number = number
        method.end_task(learner)
        yield before, held()
