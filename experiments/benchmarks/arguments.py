"""What the command lines of the benchmarks have in common: numbers, errors of one line, and the exit code."""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import NoReturn

from growlm.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with errors of one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises InputError where argparse prints its usage and exits."""
        raise InputError(f"{message} (see --help)")


def add_sizes(parser: Parser, sizes: Mapping[str, int]) -> None:
    """An option for each size of a model, with its default."""
    for size, value in sizes.items():
        parser.add_argument(f"--{size}", type=positive, default=value, metavar="N")


def check_installed(packages: Iterable[str]) -> None:
    """Raises InputError for a package that is not there."""
    for name in packages:
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed")


def positive(text: str) -> int:
    """The value of an argument that counts something."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def duration(text: str) -> float:
    """The value of an argument in seconds: 90, 90s or 1.5m."""
    try:
        seconds = float(text.removesuffix("s")) if not text.endswith("m") else 60 * float(text.removesuffix("m"))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds, such as 90 or 1.5m")
    return seconds


def exit_code(command: str, work: Callable[[], None]) -> int:
    """Does the work. Returns 0, or 2 and a line on stderr for bad input."""
    try:
        work()
    except InputError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    return 0
