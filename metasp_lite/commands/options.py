"""What options of several commands are read by."""

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

from metasp_lite import settings
from metasp_lite.doors import number_in

_Number = TypeVar("_Number", int, float)


def named(text: str) -> Path:
    """Return the path that an option gives, with the home folder for ``~``; an empty one would be the current folder.

    Raises:
        argparse.ArgumentTypeError: when there is no name, or nobody whose home it names.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give one, . for the current folder")
    path = settings.expanded(text)
    if str(path).startswith("~"):
        raise argparse.ArgumentTypeError(f"there is no home folder for {text}; a folder of that name is ./{text}")
    return path


def whole(text: str) -> int:
    """Return the whole number that an option gives.

    Raises:
        argparse.ArgumentTypeError: when it is none.
    """
    return _read(text, int, "whole number; write it in digits, as 12")


def number(text: str) -> float:
    """Return the number that an option gives.

    Raises:
        argparse.ArgumentTypeError: when it is none.
    """
    return _read(text, float, "number; write it in digits, as 12 or 0.5")


def _read(text: str, kind: type[_Number], what: str) -> _Number:
    try:
        return number_in(text, kind)
    except ValueError as error:
        short = repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
        raise argparse.ArgumentTypeError(f"{short} is no {what}") from error


def require_known(asked: Iterable[str], known: Collection[str], what: str) -> None:
    """Refuse names that are not there.

    Raises:
        ValueError: with those names, as of a ``what``, and what there is.
    """
    if unknown := sorted(set(asked) - set(known)):
        raise ValueError(f"there is no {what} {', '.join(map(repr, unknown))}; choose from {', '.join(known)}")


class Once(argparse.Action):
    """Store the value of an option that may be given once: of two the first would go without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Store it; end with an error where it has been stored before."""
        given = vars(namespace).setdefault("given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"{self.option_strings[0]} is given twice; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)
