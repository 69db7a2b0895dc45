"""Labels made wrong on purpose, to ask whether influence finds them: by chance, or in a system."""

from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("chance", "brightest", "lookalikes")


def check_wrong(wrong: float, wrong_by: str, wrong_seed: int, trusted: int) -> None:
    """Refuse a share of wrong labels, a kind of them, a seed or a count of trusted examples that cannot be.

    Raises:
        ValueError: names it and its value.
    """
    if not 0 <= wrong <= 1:
        raise ValueError(f"wrong={wrong} must be a share from 0 to 1")
    if wrong_by not in KINDS:
        raise ValueError(f"wrong_by={wrong_by!r} does not exist; give one of: {', '.join(KINDS)}")
    if trusted < 0 or not 0 <= wrong_seed < 2**63:
        raise ValueError(f"trusted={trusted} and wrong_seed={wrong_seed} must be 0 or more")


def wrong_labels(
    images: Tensor, labels: Tensor, tasks: Sequence[tuple[range, Tensor]], share: float, kind: str, seed: int
) -> Tensor:
    """Return ``labels (N,)`` with a share of them wrong, each still one of its own task's classes.

    ``tasks`` has the classes of each task and where its examples stand.  With ``chance`` the share of each class,
    rounded, gets another of the task's classes, all equally likely.  With ``brightest`` the brightest images of the
    task's first class get its second, and no others: a mistake with a system, which a network can learn.  With
    ``lookalikes`` it is that share of each class whose pixels lie nearest to the mean image of another, and they get
    that other: a mistake that people make, and that a small loss hides.

    Raises:
        ValueError: when a task has a single class, so that no label can be wrong.
    """
    draw = torch.Generator().manual_seed(seed)
    result = labels.clone()
    for classes, examples in tasks:
        if len(classes) < 2:
            raise ValueError(f"wrong={share}: a task of one class has no wrong label; give more classes_per_task")
        for label in classes[:1] if kind == "brightest" else classes:
            members = examples[labels[examples] == label]
            count = round(share * len(members))
            others = [other for other in classes if other != label]
            if kind == "chance":
                chosen = members[torch.randperm(len(members), generator=draw)[:count].to(members.device)]
                new = torch.tensor(others)[torch.randint(len(others), (count,), generator=draw)]
            elif kind == "lookalikes":
                means = [images[examples[labels[examples] == other]].float().mean(dim=0) for other in others]
                far = [(images[members].float() - mean).flatten(1).norm(dim=1) for mean in means]
                distance, nearest = torch.stack(far).min(dim=0)
                order = distance.argsort(stable=True)[:count]
                chosen, new = members[order], torch.tensor(others)[nearest[order].cpu()]
            else:
                brightness = images[members].float().flatten(1).mean(dim=1)
                chosen = members[brightness.argsort(descending=True, stable=True)[:count]]
                new = torch.full((count,), classes[1])
            result[chosen] = new.to(result)
    return result
