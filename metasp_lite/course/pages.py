"""Executed notebooks as HTML pages, and the pictures that the README shows of them."""

import base64
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from metasp_lite.course.execution import Execution
from metasp_lite.files import write_atomically

MATHJAX = "mathjax"  # folder beside the pages
_FIGURE_TAG = "readme-figure"


# The page loads no script that it does not need: require.js and mermaid serve widgets and diagrams, which it lacks.
# MathJax is copied beside the pages, so that formulas show without a network.
_PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}"""


def figures(notebook: NotebookNode) -> list[bytes]:
    """Return the PNG images that the cells tagged ``readme-figure`` have drawn."""
    return [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        if _FIGURE_TAG in cell.metadata.get("tags", [])
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def to_html(notebook: NotebookNode, title: str, mathjax: str) -> str:
    """Return the notebook as one page; ``mathjax`` is the way from the page to MathJax."""
    url = f"{mathjax}/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"
    exporter = HTMLExporter(raw_template=_PAGE, mathjax_url=url)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return page


def to_ipynb(notebook: NotebookNode) -> str:
    """Return the notebook as the text of its file, with the newline that JupyterLab ends it with."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def keep(execution: Execution, out: Path, place: Path) -> None:
    """Write the executed copy and its page to ``place`` below ``out``, beside the copied MathJax."""
    copy, html = places(out, place)
    write_atomically(copy, to_ipynb(execution.notebook))
    write_atomically(html, to_html(execution.notebook, place.stem, "../" * (len(place.parts) - 1) + MATHJAX))


def places(out: Path, place: Path) -> tuple[Path, Path]:
    """Return where ``keep`` writes a notebook's copy and its page."""
    return out / place, (out / place).with_suffix(".html")
