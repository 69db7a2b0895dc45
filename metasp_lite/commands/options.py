"""What options of several commands are read by."""

import argparse
from pathlib import Path


def named(text: str) -> Path:
    """Return the path that an option gives; an empty one would be the current folder.

    Raises:
        argparse.ArgumentTypeError: when there is no name.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give one, . for the current folder")
    return Path(text)
