"""The command line: ``python -m metasp_lite`` with one of ``COMMANDS``.

Each command is a module of ``commands`` with ``configure`` (its options) and ``main``.  Only the one that is called is
imported, and it imports what computes only when it runs: help and a misspelt option answer at once.
"""

import argparse
import contextlib
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType

from metasp_lite import settings
from metasp_lite.commands.options import Once

COMMANDS = {
    "data": "list the data sets that are here, or download one",
    "tour": "run the notebooks without a browser",
    "lab": "open JupyterLab on a copy of the notebooks that is yours",
    "bench": "measure what influences, a MetaSP step and training cost, and store it",
    "train": "train one method on one stream; the same line again goes on",
    "grid": "train all combinations of streams, methods, memory sizes and seeds",
    "report": "print tables of a grid's runs, with paired tests",
    "stages": "measure two-stage influence against retraining, and store it",
    "uses": "retrain to see what influence scores are good for, and store it",
    "variants": "train MetaSP with each variant of its weights, and ER-late beside it, and store the ends",
    "gpu-check": "compare a GPU with the CPU, measure its steps, and say how long the full grid takes",
}
_GOES_ON = ("train", "grid")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an expected error ends in one clear sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a console cannot show is spelt out, no traceback
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(words).parse_args(words)
    with _stopped_like_ctrl_c() as signals:
        status = _run(arguments)
    return 128 + signals[0] if signals else status


@contextlib.contextmanager
def _stopped_like_ctrl_c() -> Iterator[list[int]]:
    """Let a polite end (SIGTERM, or a closed terminal's SIGHUP) unwind what runs, so that nothing is left behind.

    Yields a list, which then holds the signal's number.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    polite = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    free = [number for number in polite if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    if threading.current_thread() is not threading.main_thread():
        free = []
    for number in free:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def _run(arguments: argparse.Namespace) -> int:
    """Run the command; say what stopped it in one sentence."""
    try:
        settings.profile()  # nonsense is refused by every command, whether or not it asks for the profile
        return _module(arguments.command).main(arguments)
    except KeyboardInterrupt:
        way_on = "; the same command goes on from the last checkpoint" if arguments.command in _GOES_ON else ""
        print(f"\nmetasp_lite: interrupted{way_on}", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"metasp_lite: {sentence}", file=sys.stderr)
        return 1


def _module(command: str) -> ModuleType:
    return import_module(f"metasp_lite.commands.{command.replace('-', '_')}")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser that knows all commands by name, and of the one that ``words`` call also the options."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m metasp_lite", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    called = next((word for word in words if not word.startswith("-")), None)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name == called:
            command.register("action", None, Once)
            _module(name).configure(command)
    return parser


def _sentence(error: Exception) -> str | None:
    """Return what to print for an error that a user can do something about, None for a defect."""
    if isinstance(error, OSError | ValueError | ArithmeticError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"the memory is too small ({str(error).partition(chr(10))[0] or 'no more is free'}); ask for less"
    if "torch" not in sys.modules:
        return None  # what is left comes from what computes
    import torch

    from metasp_lite.calculus import NotConvergedError
    from metasp_lite.continual import InUseError

    if isinstance(error, NotConvergedError | InUseError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is too small: {str(error).splitlines()[0]}"
    return None


if __name__ == "__main__":
    sys.exit(main())
