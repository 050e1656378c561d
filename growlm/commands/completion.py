"""`growlm completion`: a script for a shell, which then completes commands, options and files."""

import argparse
from collections.abc import Iterator

from growlm.commands.options import PATHS, Keys
from growlm.errors import import_library

OPTIONS = {"shell": {"choices": ("bash", "zsh"), "help": "the shell: growlm completion bash"}}
FOLDER = "DIR"  # how options call a folder, in their help


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command and return the exit code."""
    from growlm.commands.dispatch import COMMANDS, parser

    shtab = import_library("shtab")
    whole = parser(COMMANDS)
    for action in _actions(whole):
        if action.type in PATHS:
            action.complete = shtab.DIRECTORY if action.metavar == FOLDER else shtab.FILE
    print(shtab.complete(whole, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
