"""MetaSP's weights and its rivals: ``python -m metasp_lite variants [weights] [rivals]``.

A few minutes each, on one thread.  Stored in data/results/variants.
"""

import argparse

from metasp_lite.commands.options import require_known

_PLACES = {  # of each study
    "weights": "variants/split-fashion-mnist.json",
    "rivals": "variants/rivals-split-fashion-mnist.json",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``variants``."""
    parser.add_argument(
        "studies",
        nargs="*",
        metavar=f"{{{','.join(_PLACES)}}}",
        help="weights: their variants; rivals: MetaSP among them (default: both)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the studies that are asked for and store each as soon as it is there."""
    chosen = arguments.studies or _PLACES
    require_known(chosen, _PLACES, "study")
    import torch

    from metasp_lite import results, settings
    from metasp_lite.studies import variants

    paths = {name: results.place(place) for name, place in _PLACES.items() if name in chosen}
    torch.set_num_threads(1)  # as in the runs: the stored rows name this number
    studies = {"weights": variants.study, "rivals": variants.rivals}
    for name, path in paths.items():
        results.write(path, studies[name]())
        print(f"stored in {path.relative_to(settings.PROJECT_DIR)}")
    return 0
