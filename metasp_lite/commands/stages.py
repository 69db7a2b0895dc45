"""Studies of two-stage influence, minutes each: ``python -m metasp_lite stages``; stored in data/results/stages."""

import argparse
import time
from functools import partial


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stages``."""
    parser.add_argument(
        "studies",
        nargs="*",
        metavar="STUDY",
        type=partial(_one_of, "study"),
        help="leave-one-out, tasks, amounts, lengths, updated, optima (default: all)",
    )
    parser.add_argument(
        "--data",
        default="fashion-mnist",
        metavar="NAME",
        type=partial(_one_of, "data set"),
        help="fashion-mnist, mnist or cifar10 (default: fashion-mnist)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the studies asked for and write one file for each."""
    import torch

    from metasp_lite import results, settings
    from metasp_lite.studies.multi_stage import STUDIES

    torch.set_num_threads(1)  # as the notebook does: small products gain nothing from more
    for study in arguments.studies or STUDIES:
        path = results.RESULTS_DIR / "stages" / f"{study}-{arguments.data}.json"
        start = time.perf_counter()
        found = STUDIES[study](arguments.data)
        results.write(path, {**found, "wall_seconds": round(time.perf_counter() - start, 1)})
        print(path.relative_to(settings.PROJECT_DIR))
    return 0


def _one_of(what: str, name: str) -> str:
    """Return the name of a study or of its data.

    Raises:
        ArgumentTypeError: for any other; lists those there are.
    """
    from metasp_lite.course.two_stages import SETUPS
    from metasp_lite.studies.multi_stage import STUDIES

    known = list(STUDIES if what == "study" else SETUPS)
    if name not in known:
        raise argparse.ArgumentTypeError(f"there is no {what} {name!r}; choose from {', '.join(known)}")
    return name
