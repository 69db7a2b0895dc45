"""Notebooks as pages: what is in them, and what a browser makes of their formulas."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from metasp_lite.commands import tour
from metasp_lite.course import pages
from metasp_lite.course.execution import Execution, find_notebooks

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
LINK = re.compile(r'<a href="([^"#]+)')


def text_notebook(*texts: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_markdown_cell(text) for text in texts])


def test_page_asks_the_network_for_nothing_but_its_formulas():
    page = pages.to_html(text_notebook("$x$"), "t", "../")
    sources = [
        tag.split('src="')[1].split('"')[0] for tag in page.split("<") if tag.startswith("script") and "src=" in tag
    ]
    assert sources == ["../mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"]


def test_page_keeps_a_folded_answer_folded():
    """The formula stands between the tags, not behind an element that was closed too early."""
    answer = "<details><summary>why?</summary>\n\nbecause $x$\n\n</details>"
    page = pages.to_html(text_notebook(answer), "t")
    body = page.partition("<summary>why?</summary>")[2]
    assert -1 < body.find("because") < body.find("</details>")
    assert "details { margin: 0.6em 0; }" in page  # what follows keeps its distance


def test_links_to_notebooks_lead_to_pages_and_those_to_other_files_to_the_files(tmp_path):
    source, out = tmp_path / "course" / "more", tmp_path / "build" / "tour"
    source.mkdir(parents=True)
    (tmp_path / "a name.md").write_text("text")
    text = (
        "[1](01-b.ipynb) [2](../02-b.ipynb#3-·-Why) [3](../../a%20name.md) [4](https://a.org/x.ipynb) [5](#here) "
        '[6](nowhere.txt) [7](/root.ipynb) [8](mailto:a@b.ipynb) `<a href="x.ipynb">`'
    )
    notebook = text_notebook(text)
    notebook.cells.append(new_code_cell("link = \"<a href='01-b.ipynb'>\"", outputs=[new_output("stream", text="$")]))
    pages.keep(Execution(notebook, 0.0, None), out, Path("more") / "01-a.ipynb", source)
    page = (out / "more" / "01-a.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)', page)
    assert links == [
        "../index.html", "01-b.html", "../02-b.html#3-%C2%B7-Why", "../../../a%20name.md", "https://a.org/x.ipynb",
        "#here", "nowhere.txt", "/root.ipynb", "mailto:a@b.ipynb",
    ]  # fmt: skip
    assert (out / "more" / links[3].replace("%20", " ")).resolve() == tmp_path / "a name.md"
    assert nbformat.read(out / "more" / "01-a.ipynb", as_version=4).cells[0].source == text


# --- in a browser, where there is one -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The text of the stored notebooks as pages, beside the MathJax that the tour copies, and the list of them."""
    out = tmp_path_factory.mktemp("site")
    shutil.copytree(tour._mathjax(), out / pages.MATHJAX)
    notebooks = find_notebooks(tour.NOTEBOOKS_DIR)
    for path in notebooks:
        place = path.relative_to(tour.NOTEBOOKS_DIR)
        pages.keep(Execution(text_notebook(*texts(path)), 0.0, None), out, place, path.parent)
    pages.keep_index([pages.listed(path, path.relative_to(tour.NOTEBOOKS_DIR)) for path in notebooks], out)
    return out


def texts(path: Path) -> list[str]:
    """The text of a notebook, and what its cells show as Markdown: notebook 00's tables are outputs."""
    cells = nbformat.read(path, as_version=4).cells
    shown = [output.get("data", {}).get("text/markdown") for cell in cells for output in cell.get("outputs", [])]
    return [*(cell.source for cell in cells if cell.cell_type == "markdown"), *filter(None, shown)]


def opened(page: Path, profile: Path) -> str:
    """Return the page as a browser has it after its scripts, in a budget of its own clock, which waits for them."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed: what a browser makes of the formulas is not checked")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={profile}", "--virtual-time-budget=120000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def formulas(dom: str) -> tuple[int, int, list[str]]:
    """Return how many formulas MathJax has found, how many it has drawn, and those at which it has failed."""
    found = re.findall(r'<script type="math/tex[^>]*>(.*?)</script>', dom, re.DOTALL)
    failed = re.findall(r'class="MathJax_Error".*?<script type="math/tex[^>]*>(.*?)</script>', dom, re.DOTALL)
    failed += re.findall(r'class="(?:merror|noError)".*?</span>|<merror.*?</merror>', dom, re.DOTALL)
    return len(found), len(re.findall(r'<span class="MathJax"', dom)), failed


@pytest.mark.slow
def test_a_browser_draws_every_formula_of_the_course(site, tmp_path):
    """The text of all notebooks in one page: without code and figures, and with one start of the browser."""
    everything = dict.fromkeys(text for path in find_notebooks(tour.NOTEBOOKS_DIR) for text in texts(path))
    (site / "all.html").write_text(pages.to_html(text_notebook(*everything), "t"), encoding="utf-8")
    found, drawn, failed = formulas(opened(site / "all.html", tmp_path))
    assert failed == []
    assert drawn == found
    assert found > 100  # the course is full of them


def test_a_browser_draws_primes_in_the_font_that_lies_beside_the_page(site, tmp_path):
    """The same page without the setting fails: MathJax takes its TeX font, which is not there."""
    page = pages.to_html(text_notebook(r"$\theta'$ $f'' + g'^2$ $$G''^{-1}\hat\theta$$"), "t")
    without = re.sub(r"MathJax\.Hub\.Config\(\{\"HTML-CSS.*?\);", "", page)
    assert without != page
    for name, text in {"with": page, "without": without}.items():
        (site / f"{name}.html").write_text(text, encoding="utf-8")
    right, wrong = (formulas(opened(site / f"{name}.html", tmp_path)) for name in ("with", "without"))
    assert right == (3, 3, [])
    assert len(wrong[2]) > 0
    assert wrong[0] == 3


def test_the_list_and_the_pages_lead_to_pages_that_are_there(site):
    for page in [site / pages.INDEX, *(site / f"{path.stem}.html" for path in find_notebooks(tour.NOTEBOOKS_DIR))]:
        links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
        assert links
        assert [link for link in links if not (site / link).exists() or link.endswith(".ipynb")] == []


def test_a_browser_draws_the_list(site, tmp_path):
    """The questions hold formulas, too."""
    found, drawn, failed = formulas(opened(site / pages.INDEX, tmp_path))
    assert failed == []
    assert drawn == found
