"""The types at public doors: what passes, what is refused, and that a function stays what it is."""

from collections.abc import Sequence

import numpy as np
import pytest

from metasp_lite.doors import Count, WrongTypeError, typed


@typed
def door(count: Count, share: float = 0.5, *rest: str, rows: Sequence[int] = (), name: str | None = None) -> tuple:
    """Return the arguments."""
    return count, share, rest, rows, name


def test_arguments_of_their_types_pass_and_the_function_keeps_its_name():
    assert door(np.int64(3), 1, "a", "b", rows=np.zeros(2), name="x")[:3] == (3, 1, ("a", "b"))
    assert door.__name__ == "door"
    assert door.__doc__ == "Return the arguments."


@pytest.mark.parametrize(
    ("arguments", "named", "says"),
    [
        ((True,), {}, "count=True must be a whole number, at least 1"),
        ((1, "x"), {}, "share='x' must be a number"),
        ((1,), {"rows": "abc"}, "rows='abc' must be a sequence"),
        ((1,), {"name": 3}, "name=3 must be a text or None"),
    ],
)
def test_other_types_are_refused_by_name(arguments, named, says):
    with pytest.raises(ValueError, match=f"^door: {says}$"):
        door(*arguments, **named)


def test_a_wrong_type_is_a_type_error_and_a_value_error():
    """Whoever catches either catches it; the command line tells it in one sentence."""
    with pytest.raises(WrongTypeError):
        door(None)
    assert issubclass(WrongTypeError, TypeError)
    assert issubclass(WrongTypeError, ValueError)
