"""Notebooks of a few cells that import nothing heavy."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CHECK = "print('self-check passed: the sky is up')"


def write_notebook(folder: Path, name: str, *sources: str, tags: tuple[str, ...] = ()) -> Path:
    """Write a notebook whose last cell carries the tags."""
    cells = [new_code_cell(source) for source in sources]
    cells[-1].metadata["tags"] = list(tags)
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A title\n\n$x^2$"), *cells]), path)
    return path
