"""The command line: `growlm <command>`, one line of code per command. Bad input is one line and exit code 2."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from growlm.errors import InputError, unknown


class _Parser(argparse.ArgumentParser):
    """argparse, but for an error that is one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    """One run; prints the table at its end."""
    from growlm.study.report import summarise, table
    from growlm.training.config import build_run, load_config
    from growlm.training.loop import stop_requests
    from growlm.training.run import train

    run = build_run(load_config(args.config, overrides))
    with stop_requests() as stop:
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
    print(describe(plan), flush=True)
    if args.list:
        return 0
    with stop_requests() as stop:
        errors = run_sweep(plan, args.workdir, stop, _command_line(), args.run)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="growlm", description="Language models that grow while they train.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)

    def command(name: str, function, config: bool) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__, allow_abbrev=False)
        sub.set_defaults(function=function, takes_overrides=config)
        if config:
            sub.add_argument("--config", required=True, metavar="FILE.py[:variant]", help="an experiment file")
            sub.epilog = "--config.key=value sets any key of the config, such as --config.stages[0].schedule.peak=3e-4"
        sub.add_argument("--workdir", required=True, type=Path, help="the folder of the run or the sweep")
        return sub

    command("train", _train, config=True)
    sweep = command("sweep", _sweep, config=True)
    sweep.add_argument("--list", action="store_true", help="print the runs and their stages, and train nothing")
    sweep.add_argument("--run", metavar="NAME", help="train only this run")
    command("report", _report, config=False)
    return parser


def _dispatch(arguments: Sequence[str]) -> int:
    args, rest = _parser().parse_known_args(arguments)
    overrides = [text.removeprefix("--config.") for text in rest if text.startswith("--config.")]
    strangers = [text for text in rest if not text.startswith("--config.")]
    if strangers or (overrides and not args.takes_overrides):
        allowed = (
            ["--workdir", "--config", "--config.key=value", "--list", "--run"]
            if args.takes_overrides
            else ["--workdir"]
        )
        raise unknown(f"argument of {args.command}", (strangers or rest)[0], allowed)
    return args.function(args, overrides)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0 when it is done or was asked to stop, 1 when training failed, 2 for bad input."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return _dispatch(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"growlm: {error}", file=sys.stderr)
        return 2
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
