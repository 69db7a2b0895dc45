"""What data sets are here, from where, and how many images: ``python -m metasp_lite data [download NAME]``."""

import argparse

_KNOWN = ("cifar10", "cifar100", "fashion-mnist", "mini-imagenet", "mnist")  # ``images.KNOWN``, which imports torch


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``download NAME``."""
    parser.set_defaults(name=None)
    fetch = parser.add_subparsers(title="actions").add_parser("download", help="download a set with torchvision")
    fetch.add_argument("name", choices=_KNOWN, help="the set")


def main(arguments: argparse.Namespace) -> int:
    """Print the sets that are here and how to get the others, or download one."""
    from metasp_lite import images

    if arguments.name is not None:
        print(f"{arguments.name} is in {images.download(arguments.name)}")
        return 0
    entries = images.inventory()
    cells = [("set", "train", "test", "shape", "source")]
    for entry in entries:
        shape = "-" if entry.shape is None else "×".join("?" if n is None else str(n) for n in entry.shape)
        train, test = ("-" if count is None else f"{count:,}" for count in (entry.train, entry.test))
        cells.append((entry.name, train, test, shape, entry.source))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, train, test, shape, source in cells:
        counts = f"{train:>{widths[1]}}  {test:>{widths[2]}}"
        print(f"{name:<{widths[0]}}  {counts}  {shape:<{widths[3]}}  {source}")
    for name in images.KNOWN:
        if name not in {entry.name for entry in entries}:
            print(f"{name} is not here; {images.ways_out(name)}")
    return 0
