"""The course's front door: its notebooks as cards, and the map of what builds on what (notebook 00)."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from metasp_lite import results, settings
from metasp_lite.course.cards import Card, read_cards
from metasp_lite.course.plots import BLUE, GREEN, ORANGE

_WIDTH, _HEIGHT = 0.8, 0.76  # of a box, in columns and rows


def cards() -> list[Card]:
    """Return what the notebooks of this checkout say of themselves, with the run times of the last stored tour."""
    runs = results.read(results.RESULTS_DIR / "tour.json")["runs"]
    seconds = {run["notebook"]: run["wall_seconds"] for run in runs}
    return read_cards(settings.PROJECT_DIR / "notebooks", seconds)


def direct_needs(course: Sequence[Card]) -> dict[str, tuple[str, ...]]:
    """Return of each notebook those that it needs, without those that another of these needs already."""
    needs = {card.number: card.needs for card in course}

    def all_before(number: str) -> set[str]:
        return {each for need in needs[number] for each in (need, *all_before(need))}

    return {
        number: tuple(each for each in mine if not any(each in all_before(other) for other in mine))
        for number, mine in needs.items()
    }


def positions(course: Sequence[Card]) -> dict[str, tuple[int, float]]:
    """Return column and row of each notebook on the map.

    The column is the length of the longest way to it, so that every arrow goes to the right; in a column those that
    build on higher boxes stand higher, and each column is centred on row 0.
    """
    needs, column = direct_needs(course), dict[str, int]()
    for card in course:
        column[card.number] = max((column[need] + 1 for need in needs[card.number]), default=0)
    found: dict[str, tuple[int, float]] = {}
    for this in range(max(column.values()) + 1):
        heights = {
            number: sum(found[need][1] for need in needs[number]) / max(len(needs[number]), 1)
            for number in column
            if column[number] == this
        }
        for place, number in enumerate(sorted(heights, key=lambda number: (-heights[number], number))):
            found[number] = this, (len(heights) - 1) / 2 - place
    return found


def course_map(course: Sequence[Card]) -> Figure:
    """Draw a box for each notebook, with its title, reading time and run time, and an arrow to each from what it needs.

    Green boxes need none of the others: one may begin there; orange ones lead to no other.
    """
    where, needs = positions(course), direct_needs(course)
    followed = {need for many in needs.values() for need in many}
    columns, rows = 1 + max(x for x, _ in where.values()), 1 + 2 * max(y for _, y in where.values())
    figure, ax = plt.subplots(figsize=(8.5, 0.6 + 1.15 * rows))
    for number, many in needs.items():
        for need in many:
            (x0, y0), (x1, y1) = where[need], where[number]
            look = {"arrowstyle": "-|>", "color": "0.45", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 1}
            ax.annotate("", (x1 - _WIDTH / 2, y1), (x0 + _WIDTH / 2, y0), arrowprops=look, zorder=1)
    for card in course:
        x, y = where[card.number]
        colour = BLUE if card.needs and card.number in followed else ORANGE if card.needs else GREEN
        corner = (x - _WIDTH / 2, y - _HEIGHT / 2)
        ax.add_patch(plt.Rectangle(corner, _WIDTH, _HEIGHT, facecolor="white", edgecolor=colour, linewidth=2, zorder=2))
        words = "\n".join(textwrap.wrap(card.title, 80 // columns))
        ax.text(x, y + 0.28, card.number, ha="center", va="center", fontsize=11, weight="bold", color=colour, zorder=3)
        ax.text(x, y + 0.01, words, ha="center", va="center", fontsize=9, linespacing=1.05, zorder=3)
        ax.text(x, y - 0.29, _times(card), ha="center", va="center", fontsize=8.5, color="0.35", zorder=3)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(-rows / 2, rows / 2))
    ax.axis("off")
    return figure


def _times(card: Card) -> str:
    read = "" if card.minutes is None else f"{card.minutes} min"
    return " · ".join(part for part in (read, "" if card.seconds is None else f"runs {card.seconds} s") if part)
