"""One symbol, one meaning: the registry of the course's symbols, and the notebooks held against it."""

import re
from collections.abc import Callable, Iterator

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from metasp_lite import settings
from metasp_lite.course import notation

NOTEBOOKS = {path.name[:2]: path for path in sorted((settings.PROJECT_DIR / "notebooks").glob("*.ipynb"))}
# The letters that once had two meanings, or that have the paper's other meaning beside them.
WATCHED = [*"EKPas", r"\alpha", r"\delta", r"\epsilon", r"\gamma", r"\kappa", r"\lambda", r"\mu", r"\tau"]
GREEK = {
    "α": r"\alpha",
    "δ": r"\delta",
    "ε": r"\epsilon",
    "γ": r"\gamma",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "τ": r"\tau",
}
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)
UPRIGHT = re.compile(r"\\(?:mathrm|text|operatorname\*?|mathbf|begin|end|mathbb|mathcal)\s*(?:\{[^}]*\}|[A-Za-z])")
SUBSCRIPT = r"_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|[A-Za-z0-9])"
LETTER = re.compile(rf"(?P<letter>\\[A-Za-z]+|[A-Za-z])(?P<index>{SUBSCRIPT})?|{SUBSCRIPT}")
INDEX = re.compile(r"_\{?[ijk0-9]\}?")
# a sentence on the paper's own letters
PAPER = re.compile(r"\bpaper|\bappendi|\bprint|\btheir\b", re.IGNORECASE)


def plain(symbol: str) -> str:
    """The symbol without thin spaces and without the index of an example."""
    return re.sub(r"\\[,;!]|\s|_\{?[ij]\}?(?![^_]*,)", "", symbol)


REGISTRY = {plain(row.symbol): row for row in notation.SYMBOLS}


def table_rows(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """Yield word and symbol of the notation table; an equation in it is no symbol."""
    _, found, rest = notebook.cells[0].source.partition("| word | symbol | meaning |")
    assert found, "the first cell has no table of words, symbols and meanings"
    for line in rest.strip().splitlines()[1:]:
        if not line.startswith("|"):
            return
        word, symbols = (cell.strip() for cell in line.split("|")[1:3])
        yield from ((word, symbol) for symbol in re.findall(r"\$([^$]+)\$", symbols) if "=" not in symbol)


def declared_otherwise(notebook: NotebookNode) -> list[str]:
    """Say which symbols of the notation table the registry lacks, or has under another word."""
    wrong = []
    for word, symbol in table_rows(notebook):
        row = REGISTRY.get(plain(symbol))
        if row is None:
            wrong.append(f"{symbol} ({word}) is not in the registry")
        elif row.word.removesuffix("s") not in (one.removesuffix("s") for one in (word, *word.split(", "))):
            wrong.append(f"{symbol} is {word!r} here and {row.word!r} in the registry")
    return wrong


def letters(formula: str) -> Iterator[str]:
    """Yield each letter of a formula with its subscript, where that is more than the index of an example or a step."""
    for found in LETTER.finditer(UPRIGHT.sub(" ", formula)):
        if found["letter"]:
            index = found["index"] or ""
            yield found["letter"] + ("" if INDEX.fullmatch(index) else index)


def spelt_out(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    """Yield cell and letter for the formulas, and for Greek letters in prose and code, but for the paper's own."""
    for number, cell in enumerate(notebook.cells):
        code = cell.cell_type == "code"
        text = cell.source if code else re.sub(r"```.*?```|`[^`]*`", " ", cell.source, flags=re.DOTALL)
        for sentence in text.splitlines() if code else re.split(r"(?<=[.!?:)])\s+(?=[A-Z(*])|\n\s*\n|\n(?=[-|])", text):
            if PAPER.search(sentence):
                continue
            formulas = [] if code else [a or b for a, b in FORMULA.findall(sentence)]
            greek = re.findall("|".join(GREEK), sentence)
            yield from (
                (number, letter) for letter in (*map(GREEK.get, greek), *(one for f in formulas for one in letters(f)))
            )


def used_otherwise(notebook: NotebookNode, number: str) -> list[str]:
    """Say which watched letters the notebook uses though the registry has them for others."""
    wrong = {}
    for cell, letter in spelt_out(notebook):
        base = letter.partition("_")[0]
        if base not in WATCHED:
            continue
        row = next(
            (row for row in notation.SYMBOLS if letter in re.split(r",\s*", re.sub(r"_\d", "", row.symbol))), None
        )
        if row is None:
            wrong[f"[{cell}] {letter} is not in the registry"] = None
        elif number not in (row.home, *row.elsewhere):
            wrong[f"[{cell}] {letter} ({row.word}) is for {row.home}, {', '.join(row.elsewhere)}"] = None
    return list(wrong)


def test_no_symbol_of_the_registry_has_two_meanings():
    assert len(REGISTRY) == len(notation.SYMBOLS)
    for letter in WATCHED:
        bare = [row.symbol for row in notation.SYMBOLS if letter in re.split(r",\s*", re.sub(r"_\d", "", row.symbol))]
        assert len(bare) == 1 or (letter == "P" and not bare), letter  # the course needs P with a subscript alone


def test_the_rows_for_a_table_have_every_symbol_once():
    rows = notation.rows()
    assert [row["symbol"] for row in rows] == [f"${one.symbol}$" for one in notation.SYMBOLS]
    assert all(set(row) == {"symbol", "name", "meaning", "shape", "in code", "defined in"} for row in rows)
    assert all(row["name"] and row["meaning"] and row["shape"] for row in rows)


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_a_notebook_declares_and_uses_symbols_as_the_registry_has_them(number):
    notebook = nbformat.read(NOTEBOOKS[number], as_version=4)
    wrong = declared_otherwise(notebook) + used_otherwise(notebook, number)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("row", [row for row in notation.SYMBOLS if row.home in NOTEBOOKS], ids=lambda row: row.symbol)
def test_a_symbol_is_where_the_registry_says(row):
    """Its home names it in a formula, and its code has the name that stands for it."""
    cells = nbformat.read(NOTEBOOKS[row.home], as_version=4).cells
    formulas = [a or b for cell in cells if cell.cell_type == "markdown" for a, b in FORMULA.findall(cell.source)]
    assert any(plain(row.symbol) in plain(formula) for formula in formulas)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert not row.code or re.search(rf"\b{row.code}\b", code), f"no {row.code} in the code of notebook {row.home}"


# --- the guards themselves: a notebook that passes, then one change that each must notice ------------------------


def sound() -> NotebookNode:
    head = "| word | symbol | meaning |\n|---|---|---|\n"
    head += "| share | $\\gamma$ | x |\n| stability, plasticity | $S_t^k$, $P_t$ | y |"
    text = "Half of $\\gamma^*$ and $\\mathrm{diag}(A)$, $E_i$, $I_P$.\n\nThe paper prints $\\alpha$ and λ."
    return new_notebook(cells=[new_markdown_cell(head), new_markdown_cell(text), new_code_cell("x = 1  # γ")])


def word(notebook):
    notebook.cells[0].source = notebook.cells[0].source.replace("| share", "| weight decay")


def symbol(notebook):
    notebook.cells[0].source = notebook.cells[0].source.replace("$P_t$", "$P$")


def formula(notebook):
    notebook.cells[1].source += "\n\nHere $\\gamma$ is large, and so is $\\frac\\alpha2$."


def subscript(notebook):
    notebook.cells[1].source += "\n\nHere $\\lambda_{\\max}$ is large."


def prose(notebook):
    notebook.cells[1].source += "\n\nHere α is large."


def comment(notebook):
    notebook.cells[2].source = "x = 1  # λ₁"


@pytest.mark.parametrize(
    "damage", [word, symbol, formula, subscript, prose, comment], ids=lambda damage: damage.__name__
)
def test_another_meaning_is_noticed(damage: Callable[[NotebookNode], None]):
    notebook = sound()
    assert declared_otherwise(notebook) + used_otherwise(notebook, "05") == []
    damage(notebook)
    assert declared_otherwise(notebook) + used_otherwise(notebook, "05") != []
