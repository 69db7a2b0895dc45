"""Train one method on one stream: ``python -m metasp_lite train``; the same line again goes on."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metasp_lite import settings
from metasp_lite.commands.options import named, number, whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    parser.add_argument("--list", action=_List, help="name the streams, the methods and their settings, and stop")
    parser.add_argument("--stream", required=True, metavar="NAME", help="a stream's name, or a folder of images")
    parser.add_argument("--method", required=True, metavar="NAME")
    parser.add_argument("--memory", type=whole, metavar="N", help="stored examples (default: the stream's)")
    parser.add_argument("--seed", type=whole, default=1231, metavar="N", help="default: 1231, the first of the paper's")
    parser.add_argument("--out", type=named, required=True, metavar="DIR", help="checkpoint.pt, at the end result.json")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of stream, recipe or method"
    )
    parser.add_argument(
        "--threads", type=whole, metavar="N", help="with another number sums round differently (default: torch's)"
    )
    parser.add_argument("--profile", choices=settings.PROFILES, help="default: METASP_PROFILE, else lite")
    parser.add_argument(
        "--checkpoint-seconds", type=number, default=60.0, metavar="S", help="default: 60; 0: after every epoch"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run or go on with one run, and say how accurate it is at the end."""
    overrides: dict[str, str] = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write it as name=value")
        if (name := name.strip()) in overrides:
            raise ValueError(f"--set {name} is given twice, as {overrides[name]} and as {value.strip()}; give it once")
        overrides[name] = value.strip()
    from metasp_lite.continual import presets, training
    from metasp_lite.continual.accuracy import SETTINGS

    run = presets.build(
        arguments.stream,
        arguments.method,
        arguments.seed,
        profile=arguments.profile,
        memory=arguments.memory,
        overrides=overrides,
    )
    result = training.train(
        run, arguments.out, threads=arguments.threads, checkpoint_seconds=arguments.checkpoint_seconds
    )
    for setting, title in SETTINGS.items():
        accuracy, change = result[setting]["a_inf"], result[setting]["bwt"]
        forgetting = "" if change is None else f", backward transfer {change:+.4f}"
        print(f"{title}: final accuracy {accuracy:.4f}{forgetting}")
    print(f"all of it is in {arguments.out / 'result.json'}")
    return 0


class _List(argparse.Action):
    """Print what can be trained, and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        """Take no value."""
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the list."""
        from metasp_lite.continual import presets
        from metasp_lite.continual.methods import METHODS

        try:
            profile = settings.profile()
        except ValueError as error:
            parser.error(str(error))
        print(f"streams (profile {profile}):")
        for name, preset in presets.STREAMS[profile].items():
            print(f"  {name}: {_shown(preset.stream)}; {_shown(preset.recipe)}; memory={preset.memory}")
        print("  any folder of images {train,test}/<class>/*.png: --stream PATH --set classes_per_task=N")
        print("methods:")
        for name, method in METHODS.items():
            print(f"  {name}: {method.paper}")
            if shown := _shown(method.Settings()):
                print(f"    {shown}")
        parser.exit()


def _shown(chosen: "DataclassInstance") -> str:
    return ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(chosen).items())
