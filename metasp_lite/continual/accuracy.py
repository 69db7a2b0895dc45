"""Accuracy matrices of continual learning and the four numbers that sum them up (GEM, NeurIPS 2017; MetaSP)."""

from collections.abc import Sequence
from dataclasses import dataclass

from metasp_lite.doors import typed

# as results name them, and in words: the network chooses among all classes seen, or among those of the example's task
SETTINGS = {"class_incremental": "class-incremental", "task_incremental": "task-incremental"}
Accuracies = list[float]  # on each task seen
Matrix = Sequence[Sequence[float | None]]  # [t][k]: accuracy on task k after task t; None where it does not exist


@dataclass(frozen=True)
class Summary:
    """What a matrix says, each 0 to 1; None where a method has no such number."""

    a1: float | None  # mean accuracy on each task right after it was learnt
    a_inf: float | None  # mean accuracy on all tasks at the end
    a_m: float | None  # mean over t of the mean accuracy on the tasks seen by then
    bwt: float | None  # backward transfer: mean change from right after a task to the end; negative is forgetting
    forgetting: float | None  # mean fall from the best there ever was on a task before the last to the end


@typed
def summarise(matrix: Matrix) -> Summary:
    """A_1 = mean_k a[k][k],  A_∞ = mean_k a[T−1][k],  A_m = mean_t mean_{k≤t} a[t][k],
    BWT = mean_{k<T−1} (a[T−1][k] − a[k][k]),  forgetting = mean_{k<T−1} (max_{k≤t<T−1} a[t][k] − a[T−1][k]).

    Forgetting is Chaudhry et al.'s (ECCV 2018), and at least −BWT.  A number that needs an entry which is None is None;
    so are BWT and forgetting with a single task.

    Raises:
        ValueError: when the matrix is empty, not square, or holds an accuracy outside 0…1.
    """
    size = len(matrix)
    if odd_rows := [row for row in matrix if not isinstance(row, list | tuple)]:
        raise ValueError(f"a row of the accuracy matrix is {odd_rows[0]!r} in place of a list of accuracies")
    if size == 0 or any(len(row) != size for row in matrix):
        raise ValueError(f"an accuracy matrix is square, not rows of {[len(row) for row in matrix]}")
    known = [value for row in matrix for value in row if value is not None]
    if odd := [value for value in known if isinstance(value, bool) or not isinstance(value, int | float)]:
        raise ValueError(f"an accuracy is {odd[0]!r} in place of a number from 0 to 1")
    if not all(0 <= value <= 1 for value in known):
        raise ValueError(f"an accuracy lies outside 0 to 1: {next(value for value in known if not 0 <= value <= 1)}")
    diagonal = [matrix[k][k] for k in range(size)]
    last = list(matrix[-1])
    rows = [_mean(matrix[t][: t + 1]) for t in range(size)]
    changes = [None if a is None or b is None else a - b for a, b in zip(last[:-1], diagonal[:-1], strict=True)]
    bwt = _mean(changes) if changes else None
    return Summary(_mean(diagonal), _mean(last), _mean(rows), bwt, _mean(_falls(matrix)) if size > 1 else None)


def _falls(matrix: Matrix) -> list[float | None]:
    """Return for each task but the last the fall from its best accuracy before the end to that at the end."""
    falls: list[float | None] = []
    for k, end in enumerate(matrix[-1][:-1]):
        before = [matrix[t][k] for t in range(k, len(matrix) - 1)]
        known = [value for value in before if value is not None]
        falls.append(None if end is None or len(known) < len(before) else max(known) - end)
    return falls


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
