"""The guard over numbers in prose, on notebooks of a few lines: what it finds, and what it must leave alone."""

import pytest
from helpers.prose_numbers import EXEMPT, IGNORED_TAG, unsupported
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def printed(text: str, source: str = "", **metadata: object) -> NotebookNode:
    return new_code_cell(source, outputs=[new_output("stream", text=text)], metadata=metadata)


def found(prose: str, *code: NotebookNode, **metadata: object) -> list[str]:
    """The numbers that are found wanting in a section of this prose, behind that code."""
    cells = [new_markdown_cell("# A title"), new_markdown_cell("## 1 · A section"), *code]
    cells.append(new_markdown_cell(prose, metadata=metadata))
    return [line.partition(" in:")[0].partition("] ")[2] for line in unsupported(new_notebook(cells=cells))]


@pytest.mark.parametrize(
    ("prose", "shown"),
    [
        ("r = 0.96", "r = 0.962"),
        ("r is 0.5.", "0.46"),
        ("falls by −0.465", "slope -0.465"),
        ("falls by 0.465", "slope -0.465"),
        ("63 % of it", "share 0.63"),
        ("63 % of it", "63%"),
        ("63 % and 4.5 %", "62.8% 4.51%"),
        ("6,370 parameters", "P = 6370"),
        ("6370 parameters", "P = 6,370"),
        ("1e-9", "1e-09"),
        ("from 0.990 to 0.999", "0.9904 0.9989"),
        ("40–50 images", "40 50"),
        ("$r=0.96$", "0.962"),
        ("21 of 32", "21/32"),
    ],
)
def test_a_number_that_is_shown_with_as_many_digits_may_be_quoted(prose, shown):
    assert found(prose, printed(shown)) == []
    assert found(prose, printed("nothing")) != []


@pytest.mark.parametrize(
    ("prose", "shown"),
    [
        ("r = 0.97", "0.962"),
        ("r = 0.962", "0.96"),
        ("rises by +0.46 or −0.46", "0.46"),
        ("47 images", "46"),
        ("1e-9", "1e-8"),
        ("4 % of it", "0.05"),
        ("63 %", "6.3"),
        ("$r=0.97$", "0.962"),
    ],
)
def test_another_number_is_found(prose, shown):
    assert found(prose, printed(shown)) != []


@pytest.mark.parametrize(
    "prose",
    [
        "Six of 12 images and 3 of them",
        "notebook 02, section 4.4, eq. 15, eqs. 20 and 21, Table 60, Theorem 17, appendix J3, seed 1231, (21)",
        "Sun et al., 2022; NeurIPS 2020",
        "Split CIFAR-10, CIFAR-100, ResNet-18, float64, L-BFGS-30, x99, 3rd",
        "10¹⁵ and 6,370²",
        "`n = 47` and ```\n48\n```",
        "$$a=0.123$$ and $10^{-47}$",
        "[a paper](https://example.org/47/99)",
        "with 95 % t-intervals",
        "13. the thirteenth point",
        "The paper prints 965 and 924 in its Table 6.",
    ],
)
def test_names_years_code_formulas_and_the_papers_numbers_are_left_alone(prose):
    assert found(prose, printed("nothing")) == []


def test_a_papers_number_that_is_no_number_of_the_paper_is_found():
    assert found("The paper prints 956.", printed("nothing")) == ["956"]
    assert found("The method has 965.", printed("nothing")) == ["965"]


def test_code_counts_and_an_output_that_nbval_ignores_does_not():
    assert found("47 and 0.3", printed("", "x = -47\nassert x < 0.3  # 0.9")) == []
    assert found("0.9", printed("", "x = 1  # 0.9")) == ["0.9"]
    assert found("47", printed("47", tags=[IGNORED_TAG])) == ["47"]


def test_a_measurement_is_asked_for_in_its_section_a_count_in_the_sections_so_far_and_a_summary_anywhere():
    one, two, end = (
        new_markdown_cell(text) for text in ("## 1 · A", "text\n## 2 · B\n64 and 0.47", "## End\n64, 0.47")
    )
    cells = [new_markdown_cell("# A title"), one, printed("64 0.47"), two, printed("0.3"), end]
    assert [line.partition(" in:")[0] for line in unsupported(new_notebook(cells=cells))] == ["[3] 0.47"]
    two.source = two.source.replace("0.47", "0.47, as in section 1")
    assert unsupported(new_notebook(cells=cells)) == []
    assert len(unsupported(new_notebook(cells=cells[:3:2] + cells[3:]))) == 1  # section 1 is no longer there
    two.source = "## 2 · B\nIn notebook 08 it is 0.55, here 0.55."
    other = {"08": new_notebook(cells=[printed("0.55")])}
    assert unsupported(new_notebook(cells=cells), other) == []
    assert len(unsupported(new_notebook(cells=cells), {"07": other["08"]})) == 1


def test_a_measurement_stands_near_its_output():
    """Two blocks of code above it or one below, where cells without prose between them are one block."""
    for far, missing in ((1, 0), (2, 0), (3, 1)):
        blocks = [cell for _ in range(far - 1) for cell in (new_markdown_cell("text"), printed("1"), printed("2"))]
        cells = [new_markdown_cell("# A title\n\n## 1 · A"), printed("0.47 47"), printed("3"), *blocks]
        cells.append(new_markdown_cell("0.47 and 47"))
        assert len(unsupported(new_notebook(cells=cells))) == missing
        assert len(unsupported(new_notebook(cells=[cells[0], cells[-1], *cells[1:-1]]))) == 0
    below = [new_markdown_cell("# A title\n\n## 1 · A\n\n0.47"), printed("1")]
    below += [new_markdown_cell("text"), printed("0.47")]
    assert len(unsupported(new_notebook(cells=below))) == 1


def test_an_exemption_says_why_or_is_worked_out():
    shown = printed("1.56 47")
    assert found("It rises by 56 %.", shown) == ["56 %"]
    assert found("It rises by 56 %.", shown, **{EXEMPT: {"56 %": "of the README"}}) == []
    assert found("It rises by 56 %.", shown, **{EXEMPT: {"56 %": " "}}) == ["56 %"]
    assert found("It rises by 56 %.", shown, **{EXEMPT: {"56 %": "= 100 * (1.56 - 1)"}}) == []
    assert found("It rises by 57 %.", shown, **{EXEMPT: {"57 %": "= 100 * (1.56 - 1)"}}) == ["57 %"]
    assert found("It rises by 57 %.", shown, **{EXEMPT: {"57 %": "= 100 * (1.57 - 1)"}}) == ["57 %"]  # 1.57 is nowhere
    assert found("It rises.", shown, **{EXEMPT: {"56 %": "of the README"}}) == ["exempts 56 %, which it does not quote"]
    with pytest.raises(ValueError, match="is not arithmetic"):
        found("It rises by 56 %.", shown, **{EXEMPT: {"56 %": "= max(1, 56)"}})
