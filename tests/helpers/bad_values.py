"""Values that an argument cannot have, by what it must be, and how a refusal is told from an accident.

A refusal is raised on purpose by a line of the package, as an error that a caller can mend, and names the argument (or
what it is called in words).  A test on anything less would pass on whatever torch happens to stumble over.
"""

import linecache
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metasp_lite

PACKAGE = Path(metasp_lite.__file__).parent
MENDABLE = (ValueError, TypeError, ArithmeticError, OSError)  # by the caller
WRONG_TYPE = {"none": None, "text": "3"}
NO_NUMBER = {**WRONG_TYPE, "truth": True, "list": [1], "complex": 1j, "nan": math.nan}
NO_WHOLE = {**NO_NUMBER, "inf": math.inf, "fraction": 2.5}
NO_COUNT = {**NO_WHOLE, "zero": 0, "negative": -1}
NO_SEED = {**NO_WHOLE, "negative": -1, "huge": 2**64, "numpy's": np.int64(3)}
NO_POSITIVE = {**NO_NUMBER, "inf": math.inf, "zero": 0.0, "negative": -0.5}
NO_NONNEGATIVE = {**NO_NUMBER, "inf": math.inf, "negative": -0.5}
NO_SHARE = {**NO_POSITIVE, "above one": 1.5}
NO_TRUTH = {"none": None, "text": "true", "number": 1, "fraction": 0.5}
NO_NAME = {"none": None, "number": 3, "bytes": b"x", "empty": "", "unknown": "nonsense"}
NO_PATH = {"none": None, "number": 3, "list": []}
NO_FUNCTION = {"none": None, "text": "x", "number": 3}
NO_OBJECT = {"none": None, "text": "x", "number": 3, "list": []}


def no_tensor() -> dict[str, Any]:
    return {
        **{"none": None, "text": "x", "number": 1.0, "list": [1.0, 2.0], "array": np.ones(2)},
        "sparse": torch.ones(2).to_sparse(),
        "without values": torch.ones(2, device="meta"),
    }


def no_vector_like(good: torch.Tensor) -> dict[str, Any]:
    """What is no vector of as many finite floating-point numbers as ``good``."""
    return {
        **no_tensor(),
        "sparse": good.to_sparse(),
        "without values": good.to("meta"),
        "integers": torch.ones(len(good), dtype=torch.int64),
        "truths": torch.ones(len(good), dtype=torch.bool),
        "complex": torch.ones(len(good), dtype=torch.complex128),
        "empty": good[:0],
        "scalar": good[0].clone(),
        "matrix": good[:, None].clone(),
        "longer": torch.cat([good, good[:1]]),
        "nan": spoilt(good, math.nan),
        "inf": spoilt(good, math.inf),
    }


def no_places(count: int) -> dict[str, Any]:
    """What is no vector of places from 0 to ``count`` − 1."""
    return {
        **no_tensor(),
        "fractions": torch.tensor([0.0]),
        "truths": torch.tensor([True, False]),
        "scalar": torch.tensor(0),
        "matrix": torch.zeros(2, 2, dtype=torch.int64),
        "beyond": torch.tensor([0, count]),
        "negative": torch.tensor([-1]),
    }


def spoilt(good: torch.Tensor, value: float) -> torch.Tensor:
    bad = good.clone()
    bad.view(-1)[0] = value
    return bad


@dataclass(frozen=True)
class Door:
    """A public callable, arguments that it takes, values of each that it cannot take, and what it calls them."""

    call: Callable[..., object]
    good: Callable[[], Mapping[str, Any]]  # made when a test runs
    bad: Callable[[], Mapping[str, Mapping[str, Any]]]
    says: Mapping[str, str] = field(default_factory=dict)  # regular expressions, where not the argument's name
    costs: bool = False  # the good call is left to other tests, for it takes seconds

    def try_with(self, **changed: object) -> object:
        return self.call(**{**self.good(), **changed})


def rows(doors: Mapping[str, Door]) -> list[Any]:
    """One for each bad value of each argument of each door: name, argument, bad."""
    return [
        pytest.param(name, argument, bad, id=f"{name}-{argument}-{bad}".replace(" ", "_"))
        for name, door in doors.items()
        for argument, values in door.bad().items()
        for bad in values
    ]


def on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` in the package's own code has made the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    line = linecache.getline(file, trace.tb_lineno).strip()
    return PACKAGE in Path(file).parents and line.startswith("raise ")


def refused(door: Door, argument: str, bad: str) -> str:
    """Return how the door refuses a bad value, as a sentence.

    Raises:
        AssertionError: when it takes it, stumbles over it, or does not say which argument is meant.
    """
    value = door.bad()[argument][bad]
    try:
        result = door.try_with(**{argument: value})
    except Exception as error:
        said = str(error)
        known = (
            isinstance(error, (ValueError, TypeError, ArithmeticError, OSError))
            or "metasp_lite" in type(error).__module__
        )
        if not (known and on_purpose(error)):
            raise AssertionError(f"RAW {type(error).__name__}: {said}") from error
        if not re.search(door.says.get(argument, argument), said):
            raise AssertionError(f"UNNAMED: {said}") from error
        return said
    raise AssertionError(f"SILENT: {str(result)[:100]}")
