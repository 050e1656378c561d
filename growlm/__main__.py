"""The command line: `growlm <command>`, one line of code per command. Bad input is one line and exit code 2."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from growlm.errors import InputError, unknown


class _Parser(argparse.ArgumentParser):
    """argparse, but for an error that is one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


class _Once(argparse.Action):
    """An option that is an error when it is given twice: the second would silently win."""

    def __call__(self, parser, namespace, value, option_string=None):
        """Keeps the value."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: {getattr(namespace, self.dest)} and {value}")
        setattr(namespace, self.dest, value)


_CONFIG = {"action": _Once, "required": True, "metavar": "FILE.py[:variant]", "help": "an experiment file"}
_WORKDIR = {"action": _Once, "required": True, "type": Path, "help": "the folder of the run or the sweep"}


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    """One run; prints the table at its end."""
    from growlm.study.report import summarise, table
    from growlm.training.config import build_run, load_config
    from growlm.training.loop import stop_requests
    from growlm.training.run import train

    run = build_run(load_config(args.config, overrides))
    with stop_requests() as stop:  # the table too: a request that comes while it is printed finds all saved
        train(run, args.workdir, stop)
        print(table(summarise(args.workdir)))
    return 0


def _sweep(args: argparse.Namespace, overrides: list[str]) -> int:
    """All runs of a sweep; prints the table and the verdict, and writes the report."""
    from growlm.study.report import summarise, table, verdict, write_report
    from growlm.study.sweep import describe, plan_sweep, run_sweep
    from growlm.training.config import build_sweep, load_config
    from growlm.training.loop import stop_requests

    plan = plan_sweep(build_sweep(load_config(args.config, overrides)))
    chosen = plan.select(args.run)
    print(describe(plan, chosen), flush=True)
    if args.list:
        return 0
    with stop_requests() as stop:
        errors = run_sweep(plan, args.workdir, stop, _command_line(), chosen)
        for name, error in errors.items():
            print(f"growlm: run {name!r} failed: {error}", file=sys.stderr)
        rows = summarise(args.workdir)
        print(f"\n{table(rows)}\n\n{verdict(rows)}\n\nreport: {write_report(args.workdir)}")
    return 1 if errors else 0


def _report(args: argparse.Namespace, overrides: list[str]) -> int:
    """The table and the page of a run or of a sweep."""
    from growlm.study.report import summarise, table, write_report

    print(f"{table(summarise(args.workdir))}\n\nreport: {write_report(args.workdir)}")
    return 0


def _command_line() -> str:
    return shlex.join(["growlm", *sys.argv[1:]])


# For each command: what it does, and its options beside --workdir. With --config come the keys of the config.
_COMMANDS: dict[str, tuple[Callable[..., int], dict[str, dict]]] = {
    "train": (_train, {"--config": _CONFIG}),
    "sweep": (
        _sweep,
        {
            "--config": _CONFIG,
            "--list": {"action": "store_true", "help": "print the runs and their stages, and train nothing"},
            "--run": {"action": _Once, "metavar": "NAME", "help": "only this run"},
        },
    ),
    "report": (_report, {}),
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="growlm", description="Language models that grow while they train.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    for name, (function, options) in _COMMANDS.items():
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__, allow_abbrev=False)
        sub.add_argument("--workdir", **_WORKDIR)
        for option, settings in options.items():
            sub.add_argument(option, **settings)
        if "--config" in options:
            sub.epilog = "--config.key=value sets any key of the config, such as --config.stages[0].schedule.peak=3e-4"
    return parser


def _dispatch(arguments: Sequence[str]) -> int:
    args, rest = _parser().parse_known_args(arguments)
    function, options = _COMMANDS[args.command]
    overrides = [text for text in rest if text.startswith("--config.") and "--config" in options]
    if strangers := [text for text in rest if text not in overrides]:
        keys = ["--config.key=value"] if "--config" in options else []
        raise unknown(f"argument of {args.command}", strangers[0], ["--workdir", *options, *keys])
    return function(args, [text.removeprefix("--config.") for text in overrides])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0 when it is done or was asked to stop, 1 when training failed, 2 for bad input."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return _dispatch(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"growlm: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"growlm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("growlm: interrupted before training began", file=sys.stderr)
        return 130
    except RuntimeError as error:
        return _training_ended(error)


def _training_ended(error: RuntimeError) -> int:
    """The two ways in which training may end early, each a line; anything else is a bug and keeps its trace."""
    from growlm.training.loop import DivergedError, StoppedError

    if not isinstance(error, DivergedError | StoppedError):
        raise error
    print(f"growlm: {error}", file=sys.stderr)
    return 0 if isinstance(error, StoppedError) else 1


if __name__ == "__main__":
    sys.exit(main())
