"""What the options of all commands have in common: the parser, the types of values, options that several take."""

import argparse
import importlib.metadata
import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from growlm import buckets
from growlm.errors import InputError
from growlm.secrets import without_secrets


def installed_version(package: str) -> str | None:
    """The version of a package; None of one that is not installed, as growlm from a path is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")


class SingleUseAction(argparse.Action):
    """An option that is an error when it is given twice: the second would silently win."""

    def __call__(self, parser, namespace, value, option_string=None):
        """Store the value."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: {getattr(namespace, self.dest)} and {value}")
        if any("\udc80" <= each <= "\udcff" for each in str(value)):  # bytes that are in no UTF-8
            parser.error(f"{option_string} must be a text in UTF-8, got {str(value)!a}")
        setattr(namespace, self.dest, value)


_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def positive(text: str) -> float:
    """A positive number; 1.1B is 1.1e9."""
    unit = _UNITS.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number such as 7e9 or 7B, got {text!r}")
    return value


def _place(of: Callable[[str], Path]) -> Callable[[str], Path]:
    """The type of an option that takes a path; what is wrong with it is said as argparse says it."""

    def read(text: str) -> Path:
        try:
            return of(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


# A file or folder on a local disk or in a bucket; one that is read, from its local copy; one on a local disk.
place = _place(buckets.location)
copied = _place(buckets.here)
local = _place(lambda text: buckets.local_only(buckets.location(text), "this path"))
records = _place(lambda text: buckets.here(text, buckets.STATES))
PATHS = (place, copied, local, records)


def steps(text: str) -> range:
    """FIRST:LAST, the last included."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"must be FIRST:LAST such as 10:12, got {text!r}")
    return range(int(first), int(last) + 1)


# What was given as --NAME.key=value, by --NAME: texts key=value.
Keys = dict[str, list[str]]


def pairs(name: str, keys: Keys) -> dict[str, Any]:
    """What was given as --NAME.key=value by key, see `growlm.training.overrides.pairs`."""
    from growlm.training import overrides

    return overrides.pairs(name, keys[name])


def one(metavar: str, says: str, kind: Callable[[str], Any] = str, **more: Any) -> dict[str, Any]:
    """An option that takes one value and may be given once, as argparse has it."""
    return {"action": SingleUseAction, "metavar": metavar, "help": says, "type": kind, **more}


def flag(says: str) -> dict[str, Any]:
    """An option without a value."""
    return {"action": "store_true", "help": says}


CONFIG = one("FILE.py[:variant]", "experiment file", required=True)
WORKDIR = one("DIR", "folder of the run or the sweep", place, required=True)
CHECKPOINT = one("DIR", "a run's folder, one of growlm grow, a Hugging Face one, or hf:ORG/NAME", place, required=True)
STEP = one("N", "checkpoint of this step of a run (default: the last)", int)
PROFILING = {
    "--peak_flops": one("N", "peak FLOP/s of a device, for the model FLOPs utilization", positive),
    "--profile_steps": one("FIRST:LAST", "steps to write a profiler trace of", steps),
    "--compilation_cache": one("DIR", "folder of XLA's compilation cache (default: ~/.cache/growlm/compiled)", local),
}
TRACK = one("A,B", "send each run's curve to tensorboard, wandb, trackio", lambda text: text.split(","))
JSON = {"--json": flag("print one JSON document, and nothing else, to the standard output")}
PUSHING = {
    "--push": one("ORG/NAME", "upload what was written to the Hugging Face hub, to a new or empty repository"),
    "--public": flag("that everybody sees (default: private)"),
}
CONFIG_KEYS = {"--config": "sets any key of the config, such as --config.stages[0].schedule.peak_lr=3e-4"}


def command_line() -> str:
    """The command that runs, as a shell would take it, without secrets: it is kept in records."""
    return shlex.join(["growlm", *map(without_secrets, sys.argv[1:])])


def print_json(value: Any) -> None:
    """Print a value as the one document that `JSON` asks for."""
    from growlm.files import as_json

    print(json.dumps(as_json(value), indent=2, ensure_ascii=False))


def check_push(args: argparse.Namespace) -> None:
    """Raises InputError, before anything is computed, where what `PUSHING` asks for cannot be done."""
    if args.public and not args.push:
        raise InputError("--public is of --push=ORG/NAME")
    if args.push:
        from growlm import hub

        hub.check_push(args.push, args.public)


def push(args: argparse.Namespace) -> None:
    """Upload --output, where --push asks for it, and say where it is now."""
    if args.push:
        from growlm import hub

        print(f"pushed: {hub.push(args.output, args.push, args.public)}, {'public' if args.public else 'private'}")


def profiling_config(args: argparse.Namespace) -> Any:
    """The ProfilingConfig that the options of `PROFILING` ask for."""
    from growlm.training.metrics import ProfilingConfig

    folder = args.workdir / "profile"
    if args.profile_steps:
        buckets.local_only(folder, "the folder of a trace, --workdir/profile,")
    return ProfilingConfig(
        peak_flops=args.peak_flops, profile_steps=args.profile_steps or range(0), profile_folder=folder
    )


def announce_loading() -> None:
    """Say on a terminal, before the seconds in which nothing else is said, what they go into."""
    if sys.stderr.isatty():
        print("growlm: loading JAX and the corpus", file=sys.stderr, flush=True)
