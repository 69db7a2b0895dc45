"""Notebooks as pages."""

from nbformat.v4 import new_markdown_cell, new_notebook

from metasp_lite.course import pages


def test_page_asks_the_network_for_nothing_but_its_formulas():
    page = pages.to_html(new_notebook(cells=[new_markdown_cell("$x$")]), "t", "../mathjax")
    sources = [
        tag.split('src="')[1].split('"')[0] for tag in page.split("<") if tag.startswith("script") and "src=" in tag
    ]
    assert sources == ["../mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"]


def test_page_keeps_a_folded_answer_folded():
    """The formula stands between the tags, not behind an element that was closed too early."""
    answer = "<details><summary>why?</summary>\n\nbecause $x$\n\n</details>"
    page = pages.to_html(new_notebook(cells=[new_markdown_cell(answer)]), "t", "mathjax")
    body = page.partition("<summary>why?</summary>")[2]
    assert -1 < body.find("because") < body.find("</details>")
