"""Numbers in a notebook's prose that nothing stands behind.

A number of the prose must occur, rounded to the digits in which it is quoted, in the section it stands in (from one
``##`` heading to the next): in an output that strict nbval compares, or as a literal of the code, of the two blocks of
code above it or the one below. A count may also come from elsewhere in its section or from an earlier one; a sentence
that names section 4 or notebook 02 may quote from there; a section without code, such as the take-aways, from the whole
notebook; and a sentence on a paper from `papers.NUMBERS`.

Not asked for: whole numbers up to twelve, powers such as n², years, numbers that name something (eq. 15, CIFAR-10), and
what stands in code spans, links, the tables of the first cell and formulas, but for the decimals of one within a line.

A cell that has to quote another number says why in its own metadata:

    "numbers": {"0.47": "the value of a hypothetical reader", "56 %": "= 100 * (1.56 - 1)"}

A reason that begins with "=" is arithmetic: it must give the number, and its own numbers must be found as above.
"""

import ast
import math
import operator
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from nbformat import NotebookNode

from helpers.papers import NUMBERS as PAPERS

SMALL = 12
IGNORED_TAG = "nbval-ignore-output"
EXEMPT = "numbers"
_HEADING = re.compile(r"(?m)^(?=## )")
_REMOVED = re.compile(
    r"```.*?```"  # code
    r"|`[^`]*`"
    r"|\$\$.*?\$\$"  # formulas
    r"|\$[^$]*\$"
    r"|\]\([^)]*\)"  # where a link leads
    r"|<[^>]*>"
    r"|(?m:^\s*\d+\.\s)",  # the number of an item
    re.DOTALL,
)
_NAMED = re.compile(
    r"\b(?:notebooks?|sections?|steps?|exercises?|questions?|theorems?|lemmas?|tables?|figures?|appendix|appendices"
    r"|eqs?\.|equations?|seeds?|misprints?|tasks?|classes|algorithms?|pages?|v)\s\(?[A-Z]?\d+(?:\.\d+)*\)?"
    r"(?:(?:,| and| to|–|-|, and)\s?\(?\d+(?:\.\d+)*\)?(?!\s?%))*"
    r"|(?<![\d.,])(?:19[6-9]\d|20(?:0[1-9]|[1-3]\d))(?![\d.,]\d)"  # a year
    r"|95\s?%(?=[^.;]{0,20}interval)"
    r"|(?<=\()\d\d?(?=\))",  # an equation
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)(?<!\d[,/])"
    r"(?P<sign>−|(?<![\w)])-)?(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<decimals>\.\d+)?(?P<exponent>e[+−-]?\d+)?"
    r"(?P<power>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?![A-Za-z_\d])(?P<percent>\s?%)?"
)
_SHOWN = re.compile(r"[+−-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[+-]?\d+)?|[+−-]?\.\d+")
_SENTENCE = re.compile(r"(?<=[.!?])\*?\s+(?=[A-Z(*<\"0-9])|\n\s*\n|\n(?=[-|] )|(?<=</summary>)")
_PAPER = re.compile(r"\bpapers?\b|\bpaper's\b|\bappendix\b|\bTable [A-Z0-9]|\bet al\b|\bauthors\b", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"\b(?P<what>section|notebook)s?\s(?P<first>\d+)(?:(?:,| and| to)\s(?P<second>\d+))?", re.IGNORECASE
)
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


@dataclass(frozen=True)
class Quoted:
    """A number as the prose has it."""

    text: str
    value: float
    unit: float  # of its last digit
    signed: bool
    percent: bool
    sentence: str
    cell: int = -1

    @property
    def is_count(self) -> bool:
        """Whether it is a whole number of things."""
        return self.unit == 1 and not self.percent and not self.signed

    def places(self) -> list[str]:
        """The sections and notebooks that its sentence names."""
        return [
            f"{found['what'].lower()} {number}"
            for found in _ELSEWHERE.finditer(self.sentence)
            for number in (found["first"], found["second"])
            if number
        ]

    def is_in(self, pool: Set[float]) -> bool:
        """Whether one of the numbers is this one, when it is rounded to as many digits."""
        close = 0.5 * self.unit * (1 + 1e-6)
        for shown in pool:
            for number in (shown, 100 * shown) if self.percent else (shown,):
                if abs((number if self.signed else abs(number)) - self.value) <= close:
                    return True
        return False


@dataclass
class Section:
    """What stands between two headings: prose by cell, and the numbers of its outputs and code."""

    prose: list[tuple[int, str]] = field(default_factory=list)
    name: str = ""  # the number in its heading
    code: dict[int, set[float]] = field(default_factory=dict)

    @property
    def pool(self) -> set[float]:
        """All numbers of its outputs and code."""
        return set().union(*self.code.values())

    def near(self, cell: int) -> set[float]:
        """The numbers of the two blocks of code above a cell and of the one below; no prose stands within a block."""
        blocks: list[list[int]] = []
        for number in self.code:
            if blocks and blocks[-1][-1] == number - 1:
                blocks[-1].append(number)
            else:
                blocks.append([number])
        above, below = [one for one in blocks if one[0] < cell], [one for one in blocks if one[0] > cell]
        return set().union(*(self.code[number] for one in above[-2:] + below[:1] for number in one))


def unsupported(notebook: NotebookNode, course: Mapping[str, NotebookNode] | None = None) -> list[str]:
    """Say of each number without support where it stands: cell, number, sentence.

    ``course``: the other notebooks by their numbers, "01" and so on.
    """
    parts = sections(notebook)
    everything = set().union(*(part.pool for part in parts))
    named = {f"section {part.name}": part.pool for part in parts if part.name}
    before: set[float] = set()
    missing: dict[str, None] = {}
    for part in parts:
        before |= part.pool
        for number in _asked_for(part):
            pool = set(part.near(number.cell) if part.code else everything)
            pool |= before if number.is_count else set()
            for place in number.places():
                pool |= named.get(place, set()) or _all_of((course or {}).get(place.removeprefix("notebook ")))
            if not _is_supported(number, notebook, pool):
                missing[f"[{number.cell}] {number.text} in: {number.sentence}"] = None
    return [*missing, *_stale(notebook)]


def _stale(notebook: NotebookNode) -> list[str]:
    """Say of each exemption that its number is no longer there."""
    return [
        f"[{place}] exempts {text}, which it does not quote"
        for place, cell in enumerate(notebook.cells)
        for text in cell.metadata.get(EXEMPT, {})
        if text not in {number.text for number in quoted(cell.source)}
    ]


def _all_of(notebook: NotebookNode | None) -> set[float]:
    return set().union(*(part.pool for part in sections(notebook))) if notebook else set()


def sections(notebook: NotebookNode) -> list[Section]:
    """Cut a notebook at its ``##`` headings, which may stand in the middle of a cell."""
    parts = [Section()]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            parts[-1].code[number] = _literals(cell.source) | _shown(cell)
            continue
        first, *later = _HEADING.split(cell.source)
        if number == 0:
            first = re.sub(r"(?m)^\|.*$", "", first)
        parts[-1].prose.append((number, first))
        parts += [Section([(number, text)], text[3:].partition(" ")[0]) for text in later]
    return parts


def quoted(text: str) -> Iterator[Quoted]:
    """Yield the numbers of a text, sentence by sentence, but for those that name something."""
    text = _REMOVED.sub(_in_place_of, text)
    masked = _NAMED.sub(lambda found: re.sub(r"\d", "◦", found[0]), text)
    ends = [found.span() for found in _SENTENCE.finditer(masked)]
    for start, end in zip([0, *(end for _, end in ends)], [*(start for start, _ in ends), len(text)], strict=True):
        for found in _NUMBER.finditer(masked[start:end]):
            yield _number(found, " ".join(text[start:end].split()))


def _in_place_of(found: re.Match[str]) -> str:
    """Return what is read in place of a formula, code or a link's address: of a formula within a line its decimals."""
    decimals = re.findall(r"(?<![\w.])\d+\.\d+", found[0]) if re.match(r"\$[^$]", found[0]) else []
    return " ".join(["", *("◦" * (found[0][0] in "`$")), *decimals, ""])


def _number(found: re.Match[str], sentence: str) -> Quoted:
    exponent = int((found["exponent"] or "e0")[1:].replace("−", "-"))
    value = float(found["whole"].replace(",", "") + (found["decimals"] or "")) * 10.0**exponent
    unit = 10.0 ** (exponent - len((found["decimals"] or ".")[1:]))
    if found["power"]:
        value, unit = value ** int(found["power"].translate(_SUPERSCRIPTS)), 0.0
    sign = -1 if found["sign"] else 1
    return Quoted(found[0].strip(), sign * value, unit, bool(found["sign"]), bool(found["percent"]), sentence)


def _asked_for(part: Section) -> Iterator[Quoted]:
    for cell, text in part.prose:
        for number in quoted(text):
            whole = "." not in number.text and not number.percent and "e" not in number.text
            if not (whole and abs(number.value) <= SMALL) and number.unit:
                yield Quoted(**(vars(number) | {"cell": cell}))


def _is_supported(number: Quoted, notebook: NotebookNode, pool: Set[float]) -> bool:
    if number.is_in(pool) or (_PAPER.search(number.sentence) and number.is_in(PAPERS)):
        return True
    reason = notebook.cells[number.cell].metadata.get(EXEMPT, {}).get(number.text, "")
    if not reason.startswith("="):
        return bool(reason.strip())
    value, used = _worked_out(ast.parse(reason[1:].strip(), mode="eval").body)
    close = math.isclose(value, number.value, rel_tol=0, abs_tol=0.5 * number.unit * (1 + 1e-6))
    return close and all(one.is_in(pool) for one in used)


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _worked_out(node: ast.expr) -> tuple[float, list[Quoted]]:
    """Return the value of an expression, and those of its numbers that must be found: all but 1, 2, 10, 100, 1000.

    Raises:
        ValueError: for anything but numbers, +, -, * and /.
    """
    match node:
        case ast.Constant(value=int() | float() as value):
            return value, [] if value in (1, 2, 10, 100, 1000) else list(quoted(repr(value)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            (a, of_a), (b, of_b) = _worked_out(left), _worked_out(right)
            return _OPERATORS[type(op)](a, b), of_a + of_b
    raise ValueError(f"{ast.unparse(node)} is not arithmetic of numbers, +, -, * and /")


def _literals(source: str) -> set[float]:
    python = "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    constants = {node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Constant)}
    return {float(value) for value in constants if isinstance(value, int | float) and not isinstance(value, bool)}


def _shown(cell: NotebookNode) -> set[float]:
    """The numbers of the outputs that strict nbval compares."""
    if IGNORED_TAG in cell.metadata.get("tags", []):
        return set()
    texts = [str(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
    numbers = (found[0].replace(",", "").replace("−", "-") for text in texts for found in _SHOWN.finditer(text))
    return {float(number) for number in numbers}
