"""The command line: ``python -m metasp_lite data``, ``tour``, ``bench``, ``train``, ``grid`` and ``stages``."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from metasp_lite import bench, data, grid, methods, presets, settings, stage_studies, tour
from metasp_lite.functional import NotConvergedError
from metasp_lite.train import InUseError, train


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each module adds its own subcommand and the function that runs it."""
    parser = argparse.ArgumentParser(prog="python -m metasp_lite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    data.add_command(commands)
    tour.add_command(commands)
    bench.add_command(commands)
    add_train_command(commands)
    grid.add_command(commands)
    stage_studies.add_command(commands)
    return parser


def add_train_command(subparsers: argparse._SubParsersAction) -> None:
    """Register ``train``."""
    command = subparsers.add_parser("train", help="train one method on one stream; the same line again goes on")
    command.add_argument("--list", action=List, help="name the streams, the methods and their settings, and stop")
    command.add_argument("--stream", required=True, metavar="NAME", help="a stream's name, or a folder of images")
    command.add_argument("--method", required=True, metavar="NAME")
    command.add_argument("--memory", type=int, metavar="N", help="stored examples (default: the stream's)")
    command.add_argument("--seed", type=int, default=1231, metavar="N", help="default: 1231, the first of the paper's")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint.pt, at the end result.json")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of stream, recipe or method"
    )
    command.add_argument("--profile", choices=settings.PROFILES, help="default: METASP_PROFILE, else lite")
    command.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="S", help="default: 60; 0: after every epoch"
    )
    command.set_defaults(run=run_train)


class List(argparse.Action):
    """Print what can be trained, and exit."""

    def __init__(self, *arguments: object, **named: object) -> None:
        """Take no value."""
        super().__init__(*arguments, nargs=0, **named)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the list."""
        profile = settings.profile()
        print(f"streams (profile {profile}):")
        for name, chosen in presets.STREAMS[profile].items():
            preset = presets.PRESETS[profile][name]
            print(f"  {name}: {_shown(chosen)}; {_shown(preset.recipe)}; memory={preset.memory}")
        print("  any folder of images {train,test}/<class>/*.png: --stream PATH --set classes_per_task=N")
        print("methods:")
        for name, method in methods.METHODS.items():
            print(f"  {name}: {method.paper}")
            if shown := _shown(method.Settings()):
                print(f"    {shown}")
        parser.exit()


def _shown(chosen: object) -> str:
    return ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(chosen).items())


def run_train(arguments: argparse.Namespace) -> int:
    """Run or go on with one run, and say how accurate it is at the end."""
    overrides = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write it as name=value")
        overrides[name.strip()] = value.strip()
    run = presets.build(
        arguments.stream,
        arguments.method,
        arguments.seed,
        profile=arguments.profile,
        memory=arguments.memory,
        overrides=overrides,
    )
    result = train(run, arguments.out, checkpoint_seconds=arguments.checkpoint_seconds)
    for setting in ("class_incremental", "task_incremental"):
        accuracy, change = result[setting]["a_inf"], result[setting]["bwt"]
        forgetting = "" if change is None else f", backward transfer {change:+.4f}"
        print(f"{setting.replace('_', '-')}: final accuracy {accuracy:.4f}{forgetting}")
    print(f"all of it is in {arguments.out / 'result.json'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an expected error ends in one clear sentence, not a traceback."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError, ArithmeticError, NotConvergedError, InUseError) as error:
        print(f"metasp_lite: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"metasp_lite: the GPU's memory is too small: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        ways = {"train": "; the same command goes on from the last checkpoint"}
        ways["grid"] = ways["train"]
        print(f"\nmetasp_lite: interrupted{ways.get(arguments.command, '')}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
