"""How good scores are beside the exact influences: the columns that the studies of costs store."""

from torch import Tensor

from metasp_lite.influence.agreement import pearson, sign_confusion


def quality(true: Tensor, scores: Tensor) -> dict[str, float]:
    """Signs, correlation and slope of scores against the true influences ``(n,)``; a slope of 1 is the right size.

    Raises:
        ValueError: as ``pearson``, and when all true signs are the same.
    """
    signs, centred = sign_confusion(true, scores), true - true.mean()
    return {
        "signs_right": signs.agreement,
        "constant_guess": signs.baseline,
        "balanced_accuracy": round(signs.balanced_accuracy, 3),
        "pearson": round(pearson(true, scores), 4),
        "slope": round(float(centred @ scores / (centred @ centred)), 3),
    }
