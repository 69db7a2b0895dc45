"""What a notebook's first cell says of it, read from small files."""

import json

from metasp_lite.course import cards

HEAD = """# 05 · One step

| | |
|---|---|
| **Question** | Who | helps? |
| **You need** | notebooks 02 (its formula) and 04; notebook 06 takes it further; 3 years of study |
| **Time** | about 30 minutes to read; it runs in seconds |
"""


def write(folder, name, text):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}]
    (folder / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_a_card_has_what_the_first_cell_says(tmp_path):
    """A need that comes later is none, and neither is a number of one digit."""
    write(tmp_path, "05-step.ipynb", HEAD)
    (card,) = cards.read_cards(tmp_path, {"05-step": 24})
    assert card == cards.Card("05-step.ipynb", "05", "One step", "Who | helps?", ("02", "04"), 30, 24)


def test_cards_come_in_reading_order_without_the_front_door_and_other_files(tmp_path):
    for name in ("02-b.ipynb", "00-start-here.ipynb", "01-a.ipynb", "notes.ipynb"):
        write(tmp_path, name, f"# {name[:2]} · A title")
    found = cards.read_cards(tmp_path, {})
    assert [card.number for card in found] == ["01", "02"]
    assert found[0] == cards.Card("01-a.ipynb", "01", "A title", "", (), None, None)


def test_what_is_not_there_is_empty():
    assert cards.title("no heading") == ""
    assert cards.row(HEAD, "Hours") == ""
