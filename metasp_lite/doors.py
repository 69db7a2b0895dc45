"""What comes in by a public function has the types that it declares; anything else is refused by name.

Python leaves annotations alone: a text where a tensor is due, or a truth value where a count is due, would go on until
something deep inside stumbles over it, or nothing does.  By hand: of what is installed, nothing takes 3 for a float and
refuses True.
"""

import collections.abc
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_Number = TypeVar("_Number", int, float)
_Test = Callable[[Any], bool]
_MISSING = object()
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a pathlib.Path",
    type(None): "None",
    collections.abc.Callable: "a function",
    collections.abc.Sequence: "a sequence",
    collections.abc.Mapping: "a mapping",
}


class WrongTypeError(TypeError, ValueError):
    """An argument of another type than its function declares."""


def number_in(text: str, kind: type[_Number]) -> _Number:
    """Return the number that a text is; ``int`` and ``float`` alone also take 1_0 for ten, and other scripts' digits.

    Raises:
        ValueError: when it is none.
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is no number; write it in the digits 0 to 9 alone")
    return kind(text)


@dataclass(frozen=True)
class _Range:
    """What a number must be besides a number."""

    test: _Test
    words: str


Count = Annotated[int, _Range(lambda value: value >= 1, "at least 1")]
Whole = Annotated[int, _Range(lambda value: value >= 0, "at least 0")]
Seed = Annotated[  # torch's generators take no number of NumPy's
    int, _Range(lambda value: isinstance(value, int) and 0 <= value < 2**63, "Python's own, at least 0 and below 2**63")
]
Positive = Annotated[float, _Range(lambda value: 0 < value < math.inf, "positive and finite")]
Nonnegative = Annotated[float, _Range(lambda value: 0 <= value < math.inf, "finite and at least 0")]


def typed(function: _F) -> _F:
    """Let ``function`` be called with arguments of its annotated types alone; of a class, its ``__init__``.

    Looked at are numbers (a truth value is none), texts, tensors (dense ones that hold values), functions, classes and,
    not inside, sequences and mappings; all other annotations are for mypy.

    Raises:
        WrongTypeError: from the call, for an argument of another type; names it, its value and what it must be.
        ValueError: from the call, for a number that is not in the range, or not whole where it has to be.
    """
    if inspect.isclass(function):
        setattr(function, "__init__", typed(function.__init__))  # noqa: B010 — mypy lets no method be assigned
        return function
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
    ordered = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]

    @functools.cache
    def wanted() -> dict[str, tuple[_Test, str]]:  # at the first call: some annotations name what comes later in a file
        # without what it returns, which may be a type of something that takes long to import
        taken = types.SimpleNamespace(__annotations__={k: v for k, v in function.__annotations__.items() if k in names})
        hints = typing.get_type_hints(taken, function.__globals__, include_extras=True)
        found = {name: _test_of(hints[name]) for name in names if name in hints}
        return {name: test for name, test in found.items() if test is not None}

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        tests = wanted()
        many = min(len(ordered), len(arguments))  # a wrong number Python itself refuses
        for name, value in (*zip(ordered[:many], arguments[:many], strict=True), *named.items()):
            if name in tests and not tests[name][0](value):
                where = function.__qualname__.removesuffix(".__init__").removesuffix(".__call__")
                sentence = f"{where}: {name}={_shown(value)} must be {tests[name][1]}"
                if isinstance(value, int | float) and type(value) is not bool:
                    raise ValueError(sentence)
                raise WrongTypeError(sentence)
        return function(*arguments, **named)

    return typing.cast(_F, checked)


def _shown(value: object) -> str:
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _test_of(hint: Any) -> tuple[_Test, str] | None:
    """Return what tells a value of the type ``hint``, and the type in words; None where any value will do."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, *more = typing.get_args(hint)
        ranges = [each for each in more if isinstance(each, _Range)]
        known = _test_of(kind)
        if known is None or not ranges:
            return known
        test, words = known
        return (
            lambda value: test(value) and all(each.test(value) for each in ranges),
            ", ".join([words, *(each.words for each in ranges)]),
        )
    if origin in (types.UnionType, typing.Union):
        options = [_test_of(option) for option in typing.get_args(hint)]
        if any(option is None for option in options):
            return None
        every = [option for option in options if option is not None]
        return lambda value: any(test(value) for test, _ in every), " or ".join(words for _, words in every)
    if origin is typing.Literal:
        return _test_of(type(typing.get_args(hint)[0]))  # which of them, its function says
    if isinstance(hint, TypeVar):
        return None if hint.__bound__ is None else _test_of(hint.__bound__)
    kind = origin or hint
    if not inspect.isclass(kind) or kind is object:
        return None
    if kind.__module__.startswith("torch.optim"):
        return None  # whoever takes one says better which
    if kind in _NUMBERS:
        return _NUMBERS[kind], _WORDS[kind]
    if getattr(kind, "_is_protocol", False):
        return functools.partial(_has_all_of, kind), f"a {kind.__name__.strip('_')}"
    if kind.__module__ == "torch" and kind.__name__ == "Tensor":
        return _is_dense, "a dense Tensor that holds values"
    if kind is collections.abc.Sequence:
        return _is_row, _WORDS[kind]
    return lambda value: isinstance(value, kind), _WORDS.get(kind, f"a {kind.__name__}")


def _has_all_of(protocol: type, value: object) -> bool:
    """Whether the value has what the protocol names; a length it may lack, which its users explain better."""
    if inspect.isclass(value):  # it has the methods of what it would make
        return False
    named = [name for name in vars(protocol) if not name.startswith("_")]
    called = "__call__" not in vars(protocol) or callable(value)
    return called and all(inspect.getattr_static(value, name, _MISSING) is not _MISSING for name in named)


def _is_dense(value: Any) -> bool:
    """Whether a value is a tensor with a number at every place; a sparse one, or one of the meta device, has not."""
    import torch  # here, for what this file stands below starts without it

    return isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta


def _is_row(value: Any) -> bool:
    """Whether a value has entries by number; an array has, a text is one word."""
    has = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return has and not isinstance(value, str | bytes | collections.abc.Mapping)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and value is not True and value is not False


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and value is not True and value is not False


_NUMBERS: dict[type, _Test] = {int: _is_whole, float: _is_number}
