"""Trials in which something goes wrong on purpose: how many, with what damage, and how each ended."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from metasp_lite import __main__ as program

SEED = os.environ.get("FAULTS_SEED", "0")

OTHER_FILES = {
    "a PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00",
    "a JSON object": b'{"run": {}, "images": {}}\n',
    "a JSON list": b"[]\n",
    "a zip": b"PK\x03\x04\x14\x00\x00\x00\x00\x00",
    "a gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "a pickle": b"\x80\x04]\x94.",
    "a .npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }",
    "a text": "Ω is not ASCII\n".encode(),
    "Latin text": "été\n".encode("latin-1"),
}


def trials(few: int) -> int:
    """How many of a kind: few whenever the tests run, ``FAULTS_TRIALS`` where that is set."""
    return int(os.environ.get("FAULTS_TRIALS", few))


def draw_of(name: str) -> random.Random:
    """The source of all that is random in one test; ``FAULTS_SEED`` gives other moments and places."""
    return random.Random(f"{SEED} {name}")


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content))]


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ draw.randrange(1, 256)]) + content[place + 1 :]


def lose_a_block(content: bytes, draw: random.Random) -> bytes:
    """Zeros where a block of the disk was."""
    size = draw.randint(1, 512)
    place = draw.randrange(len(content))
    return content[:place] + bytes(len(content[place : place + size])) + content[place + size :]


def lengthen(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randint(1, 64))


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": cut,
    "one byte": flip,
    "a block lost": lose_a_block,
    "longer": lengthen,
    "empty": lambda content, draw: b"",
    "zeros": lambda content, draw: bytes(len(content)),
    "garbage": lambda content, draw: draw.randbytes(draw.randint(1, 2 * len(content))),
    "another file": lambda content, draw: draw.choice(list(OTHER_FILES.values())),
}


def damage(path: Path, draw: random.Random, number: int, *, without: str = "") -> str:
    """Damage a file, in all ways in turn (a folder in its place is one), and say how; ``mend`` undoes it."""
    names = [name for name in (*DAMAGES, "a folder") if name != without]
    name = names[number % len(names)]
    whole = path.read_bytes()
    if name == "a folder":
        path.unlink()
        path.mkdir()
        return name
    damaged = whole
    while damaged == whole:
        damaged = DAMAGES[name](whole, draw)
    path.write_bytes(damaged)
    return name


def mend(path: Path, whole: bytes) -> None:
    """Put the whole file back, whatever is in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)


def state_of(path: Path) -> object:
    """What lies at a path, to tell whether something has touched it."""
    return path.read_bytes() if path.is_file() else sorted(each.name for each in path.iterdir())


def judge(use: Callable[[], object], expected: object, path: Path) -> tuple[str, str]:
    """Use a damaged file and say how that ended, and what was said.

    ``refused`` with a sentence; ``recovered``, the file is whole again; ``harmless``, what was read is right though the
    file is damaged; ``silent``, something else was read and nothing said; ``traceback``, an error that has no sentence.
    """
    before = state_of(path)
    try:
        found = use()
    except Exception as error:
        said = program._sentence(error)
        return ("refused", said) if said else ("traceback", repr(error))
    if found != expected:
        return "silent", f"read as {str(found)[:300]}"
    touched = not path.exists() or state_of(path) != before
    return ("recovered" if touched else "harmless"), ""


def hold(tally: Counter, ended: list[tuple[str, str, str]]) -> None:
    """Count how trials (damage, outcome, sentence) ended and fail for each that must not be."""
    tally.update({"trials": len(ended), "silent": 0, "traceback": 0})
    tally.update(outcome for _, outcome, _ in ended)
    assert not [each for each in ended if each[1] in ("silent", "traceback")]
