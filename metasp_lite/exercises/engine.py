"""A task with holes: its stub, its solution and its check come from one place, and a wrong answer gets its own hint."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

_HOLE = re.compile(r"⟦(.*?)⟧", re.DOTALL)
_INSTANCES = 6
# of the largest entry: float32 answers pass (1e-7 times condition numbers below a hundred), typical errors do not
_CLOSE = 1e-3

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class _Verdict:
    """What a check says; a notebook shows it as text."""

    right: bool | None  # None: not answered yet
    text: str

    def __repr__(self) -> str:
        """Return the text alone."""
        return self.text


@dataclass(frozen=True)
class Exercise:
    """A function that a learner writes: called with one, it says whether it is right, or which error it makes.

    ``source`` is the solution, with the holes of the stub in ⟦ ⟧.  ``draw(generator, number)`` returns the arguments
    of the number-th random instance, ``truth`` gets its result by another way than the solution.  ``wrong`` has
    typical wrong answers behind their hints.  ``seen`` turns results that may differ into ones that must not: of two
    equal vectors any share is right, and what counts is the mixture.
    """

    title: str
    question: str
    source: str
    draw: Callable[[Generator, int], Arguments]
    truth: Callable[..., Any]
    wrong: Mapping[str, Callable[..., Any]]
    checked: str  # what the instances are, for the verdict
    seen: Callable[..., Any] = lambda result, *_: result

    @property
    def stub(self) -> str:
        """The code that a learner starts from."""
        return _HOLE.sub("...", self.source.strip("\n"))

    @property
    def solution(self) -> str:
        """The code without holes."""
        return _HOLE.sub(r"\1", self.source.strip("\n"))

    def __call__(self, answer: Any, seed: int | None = None) -> _Verdict:
        """Say whether ``answer`` is right on random instances, other ones at each call unless ``seed`` is given."""
        draw = torch.Generator()
        draw.seed() if seed is None else draw.manual_seed(seed)
        instances = [self.draw(draw, number) for number in range(_INSTANCES)]
        if answer is ... or answer is None:
            return _Verdict(None, "not answered yet")
        if not callable(answer):
            return _Verdict(False, f"not yet: answer is {answer!r}; make it a function, as in the stub")
        results = []
        for arguments in instances:
            try:
                result = answer(*map(_copied, arguments))
            except Exception as error:  # whatever a learner's code raises is theirs to read
                return _stopped(error, f"your code stops with {type(error).__name__}: {error}")
            if result is ... or result is None:
                return _Verdict(None, "not answered yet")
            if hasattr(result, "_fields"):  # a named tuple, such as min_norm_pair returns
                return _Verdict(False, f"not yet: return one of {', '.join(result._fields)}, not all of them")
            try:
                results.append(_numbers(self.seen(_numbers(result), *arguments)))
            except Exception as error:  # a text, say, or vectors of different lengths
                return _stopped(error, "the result is no vector or number of the right shape")
        return self._verdict(instances, results)

    def _verdict(self, instances: list[Arguments], results: list[Tensor]) -> _Verdict:
        truths = self._all(self.truth, instances)
        if all(map(_alike, results, truths)):
            return _Verdict(True, f"right: {_INSTANCES} random cases ({self.checked}), to three digits")
        for hint, wrong in self.wrong.items():
            if all(map(_alike, results, self._all(wrong, instances))):
                return _Verdict(False, f"not yet: {hint}")
        failed = next(k for k, pair in enumerate(zip(results, truths, strict=True)) if not _alike(*pair))
        got, true = results[failed], truths[failed]
        if got.numel() != true.numel():
            entries = "1 entry" if got.numel() == 1 else f"{got.numel()} entries"
            return _Verdict(False, f"not yet: the result has {entries}, and {true.numel()} would be right")
        if not got.isfinite().all():
            return _Verdict(False, "not yet: not a finite number in one of the cases; is something divided by zero?")
        misses = sum(not _alike(*pair) for pair in zip(results, truths, strict=True))
        return _Verdict(False, f"not yet: {misses} of {_INSTANCES} random cases ({self.checked}) come out otherwise")

    def _all(self, function: Callable[..., Any], instances: list[Arguments]) -> list[Tensor]:
        return [_numbers(self.seen(_numbers(function(*each)), *each)) for each in instances]


def _stopped(error: Exception, text: str) -> _Verdict:
    """Return the verdict on an answer that raised: an open hole that has gone into something is no error."""
    if "ellipsis" in str(error).lower():
        return _Verdict(None, "not answered yet")
    return _Verdict(False, f"not yet: {text}")


def _copied(argument: Any) -> Any:
    """Return a tensor's copy, so that an answer that writes into it does not change the instance."""
    return argument.clone() if isinstance(argument, Tensor) else argument


def _numbers(result: Any) -> Tensor:
    """Return a result, of whatever type, dtype and device, as float64 numbers in its own shape."""
    if isinstance(result, tuple | list):
        return torch.stack([_numbers(each) for each in result])
    return torch.as_tensor(result).detach().cpu().to(torch.float64)


def _alike(got: Tensor, true: Tensor) -> bool:
    """Whether two results are the same numbers, as a row, a column or a vector, a matrix also transposed."""
    if got.numel() != true.numel():
        return False
    ways = [got.flatten(), got.T.flatten()] if got.dim() == 2 and min(got.shape) > 1 else [got.flatten()]
    within = _CLOSE * float(true.nan_to_num().abs().max())
    return any(torch.allclose(way, true.flatten(), rtol=0, atol=within, equal_nan=True) for way in ways)
