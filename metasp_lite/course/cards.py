"""What the first cell of a notebook says of it: title, question, what it needs, how long it takes to read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MINUTES = re.compile(r"about (\d+) minutes to read")


@dataclass(frozen=True)
class Card:
    """A notebook as a learner chooses it."""

    file: str
    number: str  # in front of its file's name, "01"
    title: str  # without the number
    question: str
    needs: tuple[str, ...]  # the numbers of notebooks to be read before, ascending
    minutes: int | None  # to read it, as its author guesses
    seconds: int | None  # of its last stored run


def row(text: str, name: str) -> str:
    """Return what the row **name** of a table says, "" where there is none."""
    found = re.search(rf"^\|\s*\*\*{name}\*\*\s*\|(.*)\|\s*$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def title(text: str) -> str:
    """Return the first line of a text where that is a heading, else ""."""
    first = text.partition("\n")[0]
    return first[2:].strip() if first.startswith("# ") else ""


def read_cards(folder: Path, seconds: Mapping[str, int]) -> list[Card]:
    """Return the cards of the numbered notebooks in ``folder``, in reading order, but for 00, which shows them.

    ``seconds`` are run times by the name of a notebook without ``.ipynb``.  A notebook that is named among what is
    needed, and comes later, is no need.
    """
    cards = []
    for path in sorted(folder.glob("[0-9][0-9]-*.ipynb")):
        number = path.name[:2]
        if number == "00":
            continue
        text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        named = set(re.findall(r"(?<!\d)(\d\d)(?!\d)", row(text, "You need")))
        minutes = _MINUTES.search(row(text, "Time"))
        cards.append(
            Card(
                path.name,
                number,
                title(text).removeprefix(f"{number} · "),
                row(text, "Question"),
                tuple(sorted(each for each in named if each < number)),
                int(minutes[1]) if minutes else None,
                seconds.get(path.stem),
            )
        )
    return cards
