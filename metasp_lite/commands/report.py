"""Tables of a grid's runs: ``python -m metasp_lite report GRID``, from stored results and nothing else."""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from metasp_lite.commands.options import named

if TYPE_CHECKING:
    import pandas as pd

_FORMATS = ("markdown", "latex", "csv")
_PICTURES = (".png", ".pdf", ".svg")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.add_argument("grid", metavar="GRID", help="a grid of data/grids by its name, or a grid's FILE.toml")
    parser.add_argument(
        "--runs", type=named, metavar="DIR", help="where its runs are (default: data/results/runs/GRID)"
    )
    parser.add_argument(
        "--against", default="metasp", metavar="ARM", help="what the tests compare with (default: metasp)"
    )
    parser.add_argument("--format", choices=_FORMATS, default="markdown", help="default: markdown")
    parser.add_argument("--out", type=named, metavar="FILE", help="write there in place of printing")
    parser.add_argument(
        "--figure",
        type=named,
        metavar="FILE",
        help="draw the differences in A_∞ with their intervals, too: a .png, .pdf or .svg",
    )


def main(arguments: argparse.Namespace) -> int:
    """Print or write the tables; csv has the runs themselves, a row each."""
    from metasp_lite import results
    from metasp_lite.files import require_writable, write_atomically
    from metasp_lite.studies import report

    if arguments.figure is not None and arguments.figure.suffix not in _PICTURES:
        raise ValueError(f"--figure {arguments.figure}: give the name of a file that ends in {', '.join(_PICTURES)}")
    for file in (arguments.out, arguments.figure):
        if file is not None:
            require_writable(file)
    path = Path(arguments.grid)
    file = path if path.suffix == ".toml" else report.grid_file(arguments.grid)
    folder = arguments.runs or results.RESULTS_DIR / "runs" / file.stem
    table = report.runs(file, folder)
    known = table[table["setting"] == "class_incremental"]["a_inf"].notna()
    there = int(known.sum())
    if there == 0:
        raise ValueError(f"{folder} has no run of {file.name}; run python -m metasp_lite grid {file} --out {folder}")
    text = table.to_csv(index=False) if arguments.format == "csv" else _tables(table, arguments)
    if arguments.figure is not None:
        write_atomically(arguments.figure, _figure(table, arguments.against, arguments.figure.suffix[1:]))
    if arguments.out is not None:
        write_atomically(arguments.out, text)
        print(f"{there} of {len(known)} runs are there; written to {arguments.out}")
    else:
        print(text, end="")
    return 0


def _figure(table: "pd.DataFrame", reference: str, kind: str) -> bytes:
    """Return a picture with a panel for each stream, setting and size of memory in which ``reference`` is known."""
    from matplotlib.figure import Figure

    from metasp_lite.course import uses_plots
    from metasp_lite.studies import report

    panels = {}
    for title, part in report.parts(table):
        if reference in set(part.dropna(subset="a_inf")["arm"]):
            found = report.against(part, reference)[["difference", "low", "high"]].astype(float)
            panels[title] = dict(zip(found.index, found.itertuples(index=False, name=None), strict=True))
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels:
        raise ValueError(f"no two arms have runs from the same two seeds, one of them {reference}: nothing to draw")
    size = (8.5, sum(0.8 + 0.3 * len(rows) for rows in panels.values()))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        uses_plots.forest(ax, rows)
        ax.set(title=title, xlabel=f"A_∞ − that of {reference}, points")
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


def _tables(table: "pd.DataFrame", arguments: argparse.Namespace) -> str:
    """Return what is known of each stream, setting and size of memory, as Markdown or LaTeX."""
    from metasp_lite.studies import report

    pieces = []
    for title, part in report.parts(table):
        shown = report.paper_table(part, arguments.against)
        if arguments.format == "latex":
            pieces.append(report.latex(shown, title))
            continue
        pieces += [f"## {title}", "", report.markdown(shown), ""]
        if arguments.against in set(part.dropna(subset="a_inf")["arm"]):
            differences = report.against(part, arguments.against).round(3).astype({"pairs": int})
            pieces += [f"A_∞ against {arguments.against}, in points:", "", report.markdown(differences), ""]
    return "\n".join(pieces) + "\n"
