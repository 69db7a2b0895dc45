"""Settings by their types: what their dataclasses declare is what they hold, whoever makes them."""

import dataclasses
import types
import typing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

IN_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
_LARGEST = {int: 2**63 - 1, float: 3.4e38}  # what torch counts and computes with


def types_of(kind: "type[DataclassInstance]") -> dict[str, object]:
    """Return the names of a dataclass's fields and their types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def kind_of(wanted: object) -> tuple[type, bool]:
    """Return the type of a field beside None, and whether None is allowed."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    (kind,) = (option for option in options if option is not type(None))
    return kind, len(options) > 1


def check_types(settings: "DataclassInstance") -> None:
    """Refuse settings of another type than they declare: a fraction or a truth value where a count is due.

    Raises:
        ValueError: names the setting, its value and what it must be.
    """
    for name, wanted in types_of(type(settings)).items():
        value, (kind, optional) = getattr(settings, name), kind_of(wanted)
        allowed = (int, float) if kind is float else (kind,)
        if type(value) not in allowed and not (value is None and optional):
            raise ValueError(f"{name}={value!r} must be {IN_WORDS[kind]}{' or none' if optional else ''}")
        if kind in (int, float) and value is not None and _LARGEST[kind] < abs(value) < float("inf"):
            raise ValueError(f"{name}={value} is too large; give at most {_LARGEST[kind]:.3g}")
