"""MetaSP's variants of the weights side by side: ``python -m metasp_lite variants``, a few minutes.

Stored in data/results/variants.
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Take no options."""


def main(arguments: argparse.Namespace) -> int:
    """Run the study and store it."""
    import torch

    from metasp_lite import results, settings
    from metasp_lite.studies import variants

    torch.set_num_threads(1)  # as in the runs: the stored rows name this number
    path = results.place("variants/split-fashion-mnist.json")
    results.write(path, variants.study())
    print(f"stored in {path.relative_to(settings.PROJECT_DIR)}")
    return 0
