"""What influence scores are good for: ``python -m metasp_lite uses``, minutes each; stored in data/results/uses."""

import argparse
import time
from collections.abc import Callable

from metasp_lite.commands.options import require_known

_STUDIES = ("halves", "removal", "labels")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``uses``."""
    parser.add_argument(
        "studies",
        nargs="*",
        metavar=f"{{{','.join(_STUDIES)}}}",
        help="halves: networks trained on halves; removal: without what a score ranks first; labels: wrong ones found "
        "(default: all)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the studies that are asked for and store each as soon as it is there."""
    require_known(arguments.studies, _STUDIES, "study")
    import torch

    from metasp_lite import results, settings
    from metasp_lite.studies import uses

    paths = {name: results.place(f"uses/{name}.json") for name in arguments.studies or _STUDIES}
    torch.set_num_threads(1)  # small products gain nothing from more
    studies: dict[str, Callable[[], dict[str, object]]] = {
        "halves": uses.halves,
        "removal": uses.removal,
        "labels": uses.labels,
    }
    for name, path in paths.items():
        start = time.perf_counter()
        found = studies[name]()
        results.write(path, {**found, "wall_seconds": round(time.perf_counter() - start, 1)})
        print(f"stored in {path.relative_to(settings.PROJECT_DIR)}")
    return 0
