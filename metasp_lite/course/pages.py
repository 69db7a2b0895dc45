"""Executed notebooks as HTML pages, the page that lists them, and the pictures that the README shows of them."""

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from metasp_lite.course import cards
from metasp_lite.course.execution import Execution
from metasp_lite.files import write_atomically

MATHJAX = "mathjax"  # folder beside the pages
INDEX = "index.html"
_FIGURE_TAG = "readme-figure"


# The page loads no script that it does not need: require.js and mermaid serve widgets and diagrams, which it lacks.
# MathJax is copied beside the pages, so that formulas show without a network. The copy has one font, STIX-Web, and no
# other may be chosen: MathJax would take its TeX font, look for it in vain, and fail at every prime.
# Folded answers stand one below the other, and what follows the last of them is no part of it: they need room.
_PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}
<style>details { margin: 0.6em 0; }</style>
<script type="text/x-mathjax-config">
MathJax.Hub.Config({"HTML-CSS": {availableFonts: [], preferredFont: null, imageFont: null, webFont: "STIX-Web"}});
</script>
{{ super() }}
{% endblock %}
{% block body_header %}
{{ super() }}
{% if resources.home %}
<p class="jp-RenderedHTMLCommon" style="text-align: right"><a href="{{ resources.home }}">all notebooks</a></p>
{% endif %}
{% endblock %}"""
# an address without a scheme, a host or a leading slash, up to its fragment
_RELATIVE_LINK = re.compile(r'(<a\b[^>]*?\bhref=")(?![a-zA-Z][a-zA-Z0-9+.-]*:|[/#?])([^"#?]+)')


@dataclass(frozen=True)
class _Listed:
    """A notebook in the list of all: where it lies below the folder of pages, what it asks, and how its run ended."""

    place: Path
    title: str
    question: str
    seconds: float | None = None
    verdict: str = "not run this time"


def figures(notebook: NotebookNode) -> list[bytes]:
    """Return the PNG images that the cells tagged ``readme-figure`` have drawn."""
    return [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        if _FIGURE_TAG in cell.metadata.get("tags", [])
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def to_html(notebook: NotebookNode, title: str, root: str = "", home: bool = True) -> str:
    """Return the notebook as one page; ``root`` is the way from it to the folder of all pages, "" or "../" or further.

    ``home``: whether it leads to the list of all.
    """
    url = f"{root}{MATHJAX}/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"
    exporter = HTMLExporter(raw_template=_PAGE, mathjax_url=url)
    resources = {"metadata": {"name": title}, "home": root + INDEX if home else None}
    page, _ = exporter.from_notebook_node(notebook, resources)
    return page


def to_ipynb(notebook: NotebookNode) -> str:
    """Return the notebook as the text of its file, with the newline that JupyterLab ends it with."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def keep(execution: Execution, out: Path, place: Path, source: Path) -> None:
    """Write the executed copy and its page to ``place`` below ``out``, beside the copied MathJax.

    The page's links to other notebooks lead to their pages; those to other files, seen from the notebook's own folder
    ``source``, lead to where these lie.
    """
    copy, html = places(out, place)
    page = to_html(execution.notebook, place.stem, "../" * (len(place.parts) - 1))
    write_atomically(copy, to_ipynb(execution.notebook))
    write_atomically(html, _RELATIVE_LINK.sub(lambda link: link[1] + _led(link[2], source, html.parent), page))


def _led(link: str, source: Path, folder: Path) -> str:
    """Return a notebook's link as it must be on a page in ``folder``."""
    if link.endswith(".ipynb"):
        return link.removesuffix(".ipynb") + ".html"
    target = source / unquote(link)
    return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()) if target.exists() else link


def places(out: Path, place: Path) -> tuple[Path, Path]:
    """Return where ``keep`` writes a notebook's copy and its page."""
    return out / place, (out / place).with_suffix(".html")


def keep_index(entries: Sequence[_Listed], out: Path) -> None:
    """Write the page that lists the notebooks; those of an earlier run have their pages there, too."""
    lines = ["# The notebooks, in reading order", "", "| notebook | question | ran for | result |", "|---|---|---|---|"]
    for entry in entries:
        page = places(out, entry.place)[1]
        name = entry.title or _plain(entry.place.stem)
        link = f"[{name}]({quote(page.relative_to(out).as_posix())})" if page.is_file() else name
        seconds = "" if entry.seconds is None else f"{entry.seconds:.0f} s"
        lines.append(f"| {link} | {entry.question} | {seconds} | {_plain(entry.verdict)} |")
    page_of_all = new_notebook(cells=[new_markdown_cell("\n".join(lines))])
    write_atomically(out / INDEX, to_html(page_of_all, "metasp_lite", home=False))


def _plain(text: str) -> str:
    """Return text in which Markdown finds nothing to format."""
    return re.sub(r"([\\`*_{}\[\]()<>#|~])", r"\\\1", text)


def listed(path: Path, place: Path) -> _Listed:
    """Return the line of a notebook that has not run: the title and the question that its first cell opens with.

    What its first cell lacks stays empty, as all does in a file that is no notebook.
    """
    try:
        text = str(nbformat.read(path, as_version=nbformat.NO_CONVERT)["cells"][0]["source"])
    except Exception:  # whatever a file that is no notebook makes of nbformat; that it is none, its run says
        return _Listed(place, "", "")
    return _Listed(place, cards.title(text), cards.row(text, "Question"))
