"""Studies of two-stage influence, minutes each: ``python -m metasp_lite stages``; stored in data/results/stages."""

import argparse
import time

from metasp_lite.commands.options import require_known

# the names in ``multi_stage.STUDIES`` and ``two_stages.SETUPS``, which import torch
_STUDIES = ("leave-one-out", "tasks", "amounts", "distributions", "lengths", "updated", "optima", "first-optimum")
_DATA = ("fashion-mnist", "mnist", "cifar10")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stages``."""
    parser.add_argument("studies", nargs="*", metavar=f"{{{','.join(_STUDIES)}}}", help="default: all")
    parser.add_argument("--data", default="fashion-mnist", choices=_DATA, help="default: fashion-mnist")


def main(arguments: argparse.Namespace) -> int:
    """Run the studies asked for and write one file for each."""
    require_known(arguments.studies, _STUDIES, "study")
    import torch

    from metasp_lite import results, settings
    from metasp_lite.studies.multi_stage import STUDIES

    torch.set_num_threads(1)  # as the notebook does: small products gain nothing from more
    studies = arguments.studies or _STUDIES
    paths = [results.place(f"stages/{study}-{arguments.data}.json") for study in studies]
    for study, path in zip(studies, paths, strict=True):
        start = time.perf_counter()
        found = STUDIES[study](arguments.data)
        results.write(path, {**found, "wall_seconds": round(time.perf_counter() - start, 1)})
        print(path.relative_to(settings.PROJECT_DIR))
    return 0
