"""One symbol, one meaning: the registry of the course's symbols, and the notebooks held against it."""

import ast
import re
from collections.abc import Callable, Iterator

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from metasp_lite import settings
from metasp_lite.course import notation

NOTEBOOKS = {path.name[:2]: path for path in sorted((settings.PROJECT_DIR / "notebooks").glob("*.ipynb"))}
FRONT_DOOR = NOTEBOOKS.pop("00")  # it declares nothing, and shows the whole registry
# The letters of which each subscript has to be in the registry, too: they once had two meanings, or have another one in
# the paper.  Of the others the letter has to be there.
WATCHED = [*"EKPas", r"\alpha", r"\delta", r"\epsilon", r"\gamma", r"\kappa", r"\lambda", r"\mu", r"\tau"]
GREEK = dict(zip("αδεγκλμτβρξ", [*WATCHED[5:], r"\beta", r"\rho", r"\xi"], strict=True))
COUNTERS = "ijk"  # they number examples, terms, steps and earlier tasks
COMMON = ("e", r"\Delta")  # Euler's number, and a change of what follows it: as everywhere
COMMAND = re.compile(  # what begins with a backslash is no letter, but for these
    r"\\(?!ell|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|varphi|chi|psi"
    r"|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)"
)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)
UPRIGHT = re.compile(r"\\(?:mathrm|text|operatorname\*?|mathbf|begin|end|mathbb|mathcal)\s*(?:\{[^}]*\}|\w)|\\\\")
SUBSCRIPT = r"_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|[A-Za-z0-9])"
SUPERSCRIPT = re.compile(r"\^\{(?:trn|tst)\}")  # of a task's data: words, not letters
BARE_LOSS = re.compile(r"(?<!\\nabla)(?<!\\nabla\^2)\\ell(?![a-z(_'^])")  # ℓ of nothing; ∇ℓ has said of what
CODED = re.compile(r"(?<![\w'\"])([A-Za-z])(?:'{1,2}(?![\w'])|[₀₁₂ₖᵢ])")  # G'' or f₁, in code or prose
LETTER = re.compile(rf"(?P<letter>\\[A-Za-z]+|[A-Za-z])(?P<index>{SUBSCRIPT})?|{SUBSCRIPT}")
INDEX = re.compile(r"_\{?[ijk0-9]\}?")
# a sentence on the paper's own letters, or on those of both
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


def base(symbol: str) -> set[str]:
    """The first letter of each symbol of a row: those that a row gives a meaning to."""
    first = (re.match(r"(?:\\hat)?(\\?[A-Za-z]+|.)", plain(part)) for part in re.split(r",\s*(?![^(]*\))", symbol))
    return {found[1] if found[1].startswith("\\") else found[1][0] for found in first if found}


# the row that says what a letter is; the others with that letter are forms of it
MEANINGS = {letter: row for row in notation.SYMBOLS if not row.form for letter in base(row.symbol)}


def letters(formula: str) -> Iterator[str]:
    """Yield each letter of a formula with its subscript, where that is more than the index of an example or a step."""
    for found in LETTER.finditer(SUPERSCRIPT.sub(" ", UPRIGHT.sub(" ", formula))):
        if found["letter"]:
            index = found["index"] or ""
            yield found["letter"] + ("" if INDEX.fullmatch(index) else index)


def assigned(source: str) -> Iterator[str]:
    """Yield the names of one letter that a code cell binds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.name


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


def belongs(letter: str, number: str) -> bool:
    """Whether the registry has the letter, without its subscript, for this notebook."""
    row = MEANINGS.get(letter)
    return row is not None and number in (row.home, *row.elsewhere)


def used_otherwise(notebook: NotebookNode, number: str) -> list[str]:
    """Say which letters the notebook uses though the registry has them for others, or has them not."""
    wrong = {}
    for cell, letter in spelt_out(notebook):
        first = letter.partition("_")[0]
        if COMMAND.match(first) or first in COUNTERS or first in COMMON:
            continue
        if first in WATCHED:  # with the subscript
            rows = [row for row in notation.SYMBOLS if letter in re.split(r",\s*", re.sub(r"_\d", "", row.symbol))]
            fits = any(number in (row.home, *row.elsewhere) for row in rows)
        else:
            fits = belongs(first, number)
        if not fits:
            wrong[f"[{cell}] {letter} is not in the registry, or for other notebooks"] = None
    return list(wrong)


def coded_otherwise(notebook: NotebookNode, number: str) -> list[str]:
    """Say which names of one letter the code binds, and which f₁ or G'' the text has, that mean something else."""
    wrong = []
    for place, cell in enumerate(notebook.cells):
        code = cell.cell_type == "code"
        names = assigned(cell.source) if code else ()
        plain_text = cell.source if code else re.sub(r"`[^`]*`|\$[^$]*\$", " ", cell.source)
        found = {name for name in names if len(name) == 1 and name.isalpha()} | set(CODED.findall(plain_text))
        found -= set(COUNTERS)
        wrong += [f"[{place}] {name} in code or prose" for name in sorted(found) if not belongs(name, number)]
    return wrong


def loss_of_nothing(notebook: NotebookNode, number: str) -> list[str]:
    """Say where ℓ stands for a number, without what it is the loss of."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    formulas = (a or b for source in cells for a, b in FORMULA.findall(source))
    return [f"ℓ of nothing in {formula}" for formula in formulas if BARE_LOSS.search(formula)]


CHECKS = (lambda notebook, _: declared_otherwise(notebook), used_otherwise, coded_otherwise, loss_of_nothing)


def everything_wrong(notebook: NotebookNode, number: str) -> list[str]:
    return [complaint for check in CHECKS for complaint in check(notebook, number)]


def test_no_symbol_of_the_registry_has_two_meanings():
    assert len(REGISTRY) == len(notation.SYMBOLS)
    first = [letter for row in notation.SYMBOLS if not row.form for letter in base(row.symbol)]
    assert len(first) == len(set(first)), "a letter with two rows that are no forms of it"
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
    wrong = everything_wrong(notebook, number)
    assert not wrong, "\n".join(wrong)


def test_the_front_door_shows_every_symbol_and_binds_none():
    notebook = nbformat.read(FRONT_DOOR, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "\n".join(output["data"].get("text/markdown", "") for output in outputs if "data" in output)
    assert re.findall(r"(?m)^\| \$(.+?)\$ \|", shown) == [row.symbol for row in notation.SYMBOLS]
    assert not coded_otherwise(notebook, "00")


@pytest.mark.parametrize("row", [row for row in notation.SYMBOLS if row.home in NOTEBOOKS], ids=lambda row: row.symbol)
def test_a_symbol_is_where_the_registry_says(row):
    """The word table of its home has it, and the code there has the name that stands for it."""
    cells = nbformat.read(NOTEBOOKS[row.home], as_version=4).cells
    formulas = [a or b for a, b in FORMULA.findall(cells[0].source)]
    assert any(plain(row.symbol) in plain(formula) for formula in formulas)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert not row.code or re.search(rf"\b{row.code}\b", code), f"no {row.code} in the code of notebook {row.home}"


# --- the guards themselves: a notebook that passes, then one change that each must notice ------------------------


def sound() -> NotebookNode:
    head = "| word | symbol | meaning |\n|---|---|---|\n"
    head += "| share | $\\gamma$ | x |\n| stability, plasticity | $S_t^k$, $P_t$ | y |"
    text = "Half of $\\gamma^*$ and $\\mathrm{diag}(w)$, $E_i$, $I_P$.\n\nThe paper prints $\\alpha$ and λ."
    text += "\n\n$\\nabla\\ell+\\ell(V)$, $g_1^\\top d$, $D_t^{trn}$, $\\mathbb 1$, and the network's θ′."
    return new_notebook(cells=[new_markdown_cell(head), new_markdown_cell(text), new_code_cell("x = 1  # γ, g₁")])


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


def number_l(notebook):
    notebook.cells[1].source += "\n\nAt most $1+\\ell$."


def another_letter(notebook):
    notebook.cells[1].source += "\n\nThe mean $G(W)$."


def another_notebook(notebook):
    notebook.cells[1].source += "\n\nThe loss $f(x)$ of finetuning."


def name_in_code(notebook):
    notebook.cells[2].source = "f = 0.1"


def argument_in_code(notebook):
    notebook.cells[2].source = "def share(A):\n    return A"


def printed(notebook):
    notebook.cells[2].source = "print(\"eigenvalues of G''\")"


def index_in_prose(notebook):
    notebook.cells[1].source += "\n\nCount f₂ in another unit."


@pytest.mark.parametrize(
    "damage",
    [
        word,
        symbol,
        formula,
        subscript,
        prose,
        comment,
        number_l,
        another_letter,
        another_notebook,
        name_in_code,
        argument_in_code,
        printed,
        index_in_prose,
    ],
    ids=lambda damage: damage.__name__,
)
def test_another_meaning_is_noticed(damage: Callable[[NotebookNode], None]):
    notebook = sound()
    assert everything_wrong(notebook, "05") == []
    damage(notebook)
    assert everything_wrong(notebook, "05") != []
