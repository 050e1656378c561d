"""What `growlm <command>` does: one line of code per command. Bad input is one line and exit code 2."""

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Sequence
from types import ModuleType

from growlm.commands.options import Parser, installed_version
from growlm.commands.uncollected import uncollected
from growlm.errors import BrokenClaimError, DivergedError, InputError, StoppedError, unknown
from growlm.signals import INTERRUPTED, restore_signals

# Each is growlm/commands/NAME.py, which is imported when it is asked for.
COMMANDS = {
    "train": "train one run",
    "sweep": "train the runs of a sweep, compare them and write the report",
    "grow": "grow a checkpoint and verify what was grown",
    "probe": "try growths on a run's state and say which trains best",
    "prepare": "make token shards of text or of a dataset",
    "convert": "convert a checkpoint from Hugging Face's form and back",
    "report": "compare runs: tables, figures and a page",
    "archive": "copy a sweep's records, without its checkpoints",
    "plan": "say when to grow a model, by how much, and what it costs",
    "fit": "fit a law to runs",
    "evaluate": "measure a checkpoint on benchmarks and text",
    "sample": "write text with a checkpoint, or talk to it",
    "doctor": "say what this machine has, what is missing, and what can be grown",
    "completion": "print a script with which bash or zsh completes commands and options",
}
RENAMED = {"keep": "archive"}  # until 0.3


def _command(name: str) -> ModuleType:
    with uncollected():
        return importlib.import_module(f"growlm.commands.{name}")


def parser(chosen: Collection[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of those that are chosen: they have to be loaded for that."""
    whole = Parser(prog="growlm", description="Language models that grow while they train.", allow_abbrev=False)
    own = installed_version("growlm") or "of a path"
    whole.add_argument("--version", action="version", version=f"growlm {own}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    for name, says in COMMANDS.items():
        sub = commands.add_parser(name, help=says, allow_abbrev=False)
        if name not in chosen:
            continue
        command = _command(name)
        sub.description = command.__doc__
        for option, settings in command.OPTIONS.items():
            sub.add_argument(option, **settings)
        sub.epilog = "; ".join(f"{option}.key=value {says}" for option, says in getattr(command, "KEYS", {}).items())
    return whole


def _dispatch(arguments: Sequence[str]) -> int:
    arguments = [RENAMED.get(arguments[0], arguments[0]), *arguments[1:]] if arguments else []
    args, rest = parser(arguments[:1]).parse_known_args(arguments)
    command = _command(args.command)
    names = getattr(command, "KEYS", {})
    keys = {name: [text for text in rest if text.startswith(f"{name}.")] for name in names}
    taken = [text for texts in keys.values() for text in texts]
    if strangers := [text for text in rest if text not in taken]:
        allowed = [*command.OPTIONS, *(f"{name}.key=value" for name in names)]
        raise unknown(f"argument of {args.command}", strangers[0], allowed)
    if not getattr(command, "TAKES_SIGNALS", False):
        restore_signals()
    return command.run(args, {name: [text.removeprefix(f"{name}.") for text in texts] for name, texts in keys.items()})


def outcome(arguments: Sequence[str]) -> int:
    """The exit code of a command. Where it ends early a line says why; anything else is a bug and keeps its trace."""
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        from growlm.buckets import with_origins  # --help is quick

        print(f"growlm: {with_origins(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    except (DivergedError, BrokenClaimError, StoppedError) as error:
        print(f"growlm: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(error, StoppedError) else 1  # to a scheduler: start it again
    except (MemoryError, RuntimeError) as error:
        from growlm.training.device_memory import exhausted
        from growlm.training.processes import gone, lost_peer

        if reason := exhausted(error):
            less = "a smaller model, batch or length needs less"
            print(f"growlm: {arguments[0]} is out of memory: {reason}; {less}", file=sys.stderr)
            return 2
        if not lost_peer(error):
            raise
        print(gone(str(error).splitlines()[0]), file=sys.stderr)
        return 1
