"""The command line: `growlm <command>`, one line of code per command. Bad input is one line and exit code 2."""

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from growlm.errors import InputError, unknown
from growlm.options import OPTIONS, Parser

STOPPED = 75  # EX_TEMPFAIL, to a scheduler: start it again

# What was given as --NAME.key=value, by --NAME: texts key=value.
Keys = dict[str, list[str]]


def _instruments(args: argparse.Namespace) -> Any:
    from growlm.training.metrics import Instruments

    return Instruments(args.peak_flops, args.profile_steps or range(0), args.workdir / "profile")


def _train(args: argparse.Namespace, keys: Keys) -> int:
    """One run; prints the table at its end."""
    from growlm.study.report import summarise, table
    from growlm.study.sweep import reproduction
    from growlm.training.config import build_run, load_config
    from growlm.training.loop import stop_requests
    from growlm.training.processes import is_first, join_processes
    from growlm.training.run import train

    join_processes()
    run = build_run(load_config(args.config, keys["--config"]))
    # The table too is within: a request to stop that comes while it is printed finds all saved.
    with stop_requests() as stop:
        how = _instruments(args), args.compilation_cache
        train(run, args.workdir, stop, *how, reproduction(_command_line()))
        if is_first():
            print(table(summarise(args.workdir)))
    return 0


def _sweep(args: argparse.Namespace, keys: Keys) -> int:
    """All runs of a sweep; prints the table and the verdict, and writes the report."""
    from growlm.study.report import summarise, table, verdict, write_report
    from growlm.study.sweep import describe, plan_sweep, run_sweep
    from growlm.training.config import build_sweep, load_config
    from growlm.training.loop import stop_requests
    from growlm.training.processes import is_first, join_processes

    join_processes()
    plan = plan_sweep(build_sweep(load_config(args.config, keys["--config"])), args.workdir)
    chosen = plan.select(args.run)
    if is_first():
        print(describe(plan, chosen), flush=True)
    if args.list:
        return 0
    with stop_requests() as stop:
        how = _instruments(args), args.compilation_cache
        errors = run_sweep(plan, args.workdir, stop, _command_line(), chosen, *how)
        if not is_first():
            return 1 if errors else 0
        for name, error in errors.items():
            print(f"growlm: run {name!r} failed: {error}", file=sys.stderr)
        try:
            rows = summarise(args.workdir)
            print(f"\n{table(rows)}\n\n{verdict(rows)}\n\nreport: {write_report(args.workdir)}")
        except InputError:
            if not errors:  # else there may be nothing to report
                raise
    return 1 if errors else 0


def _report(args: argparse.Namespace, keys: Keys) -> int:
    """The table and the page of a run, of a sweep, or of sweeps at several seeds."""
    from growlm.study.report import overview, write_report

    if (args.workdir is None) == (args.runs is None):
        raise InputError("report needs one of --workdir=DIR, a run or a sweep, and --runs=DIR, a folder of such")
    folder = args.workdir or args.runs
    print(f"{overview(folder, args.loss)}\n\nreport: {write_report(folder, args.loss)}")
    return 0


def _keep(args: argparse.Namespace, keys: Keys) -> int:
    """The records of a sweep as three small files, which report and fit read as they read the sweep."""
    from growlm.study.kept import keep

    print(f"written: {keep(args.workdir, args.output)}")
    return 0


def _grow(args: argparse.Namespace, keys: Keys) -> int:
    """A saved model, grown; prints what became of it and whether it is what it should be."""
    from growlm.training.grow import Request, list_growths

    if args.list:
        print(list_growths())
        return 0
    needed = {"--source": args.source} | ({} if args.dry_run else {"--output": args.output})
    if missing := [option for option, value in needed.items() if value is None]:
        raise InputError(f"grow needs {missing[0]}=DIR (see growlm grow --help)")
    asked = (args.source, args.output, args.operator or "direct", args.factor, keys["--target"], keys["--option"])
    home = _growing(args.source)
    plan = home.plan_grow(Request(*asked, args.optimizer_state, args.step, args.seed))
    if args.dry_run:
        print(home.describe_plan(plan))
        return 0
    verdict = home.run_grow(
        plan, not args.no_verify, lambda text: print(f"growlm: {text}", file=sys.stderr, flush=True)
    )
    print(f"{home.describe_plan(plan)}\n\n{verdict}\n\nwritten: {args.output}")
    return 0


def _prepare(args: argparse.Namespace, keys: Keys) -> int:
    """Text or a dataset becomes token shards, which a run's config names as its corpus."""
    from growlm.data.documents import Reading
    from growlm.data.prepare import Request, describe, prepare, verify

    if args.output is None:
        raise InputError("prepare needs --output=DIR (see growlm prepare --help)")
    if args.verify:
        print(f"{describe(args.output, verify(args.output))}\n\nverified: {args.output}")
        return 0
    given = {name: value for name, value in vars(args).items() if value is not None}
    reading = Reading(**{name: given[name] for name in ("field", "errors") if name in given})
    named = ("tokenizer", "train_tokenizer", "vocab", "eos", "validation", "split", "data_dir", "workers")
    options = {name: given[name] for name in named if name in given}
    manifest = prepare(Request(tuple(args.source or ()), args.output, reading=reading, **options))
    print(f"{describe(args.output, manifest)}\n\nwritten: {args.output}")
    return 0


def _plan(args: argparse.Namespace, keys: Keys) -> int:
    """When to grow a model, by how much, at which learning rates; what it should save and cost."""
    from growlm.laws.planner import plan
    from growlm.study.advice import describe, write_experiment

    given = {name: getattr(args, name) for name in _PLAN_NUMBERS if getattr(args, name) is not None}
    planned = plan(args.params, args.tokens, args.chip, **given)
    print(describe(planned))
    if args.write:
        write_experiment(planned, args.write, _command_line(), args.corpus or "stdlib")
        print(f"\nwritten: {args.write}")
    return 0


def _fit(args: argparse.Namespace, keys: Keys) -> int:
    """A law fitted to the runs of sweeps, with intervals and the paper's beside it."""
    from functools import partial

    from tqdm import tqdm

    from growlm.study.fit import fit_runs

    say = partial(print, flush=True)
    fit_runs(args.runs, args.law, args.slices, say, partial(tqdm, desc="resampling", leave=False))
    return 0


def _growing(source: Path) -> Any:
    """The module that plans and runs growth of what lies there: a Hugging Face folder, or one of ours."""
    from growlm.interop import is_hugging_face

    return importlib.import_module("growlm.interop.grow" if is_hugging_face(source) else "growlm.training.grow")


def _convert(args: argparse.Namespace, keys: Keys) -> int:
    """A Hugging Face folder to one of growlm's, or back; or what a folder is."""
    from growlm.interop import convert_folder, describe

    if args.describe:
        print(describe(args.source))
        return 0
    if missing := [option for option in ("output", "to") if getattr(args, option) is None]:
        raise InputError(f"convert needs --{missing[0]}, or --describe (see growlm convert --help)")
    convert_folder(args.source, args.output, args.to, args.dtype, args.step)
    print(f"{describe(args.output)}\n\nwritten: {args.output}")
    return 0


def _evaluate(args: argparse.Namespace, keys: Keys) -> int:
    """A saved model's scores on benchmarks, and its perplexity on text; prints a table and writes JSON."""
    from growlm.evaluation.table import table
    from growlm.study.evaluate import Request, run_evaluation
    from growlm.training.processes import is_first, join_processes

    join_processes()
    given = {name: value for name, value in vars(args).items() if name not in ("command", "tasks", "perplexity")}
    names = tuple(filter(None, (args.tasks or "").split(",")))
    texts = tuple(map(Path, filter(None, (args.perplexity or "").split(","))))
    given["dtype"] = args.dtype or "float32"
    results, path = run_evaluation(Request(**given, tasks=names, texts=texts, mesh=tuple(keys["--mesh"])), is_first())
    if is_first():
        print(f"{table(results)}\n\nwritten: {path}")
    return 0


def _command_line() -> str:
    return shlex.join(["growlm", *sys.argv[1:]])


_PLAN_NUMBERS = ("count", "mfu", "factor", "vocab", "length")

_COMMANDS: dict[str, Callable[[argparse.Namespace, Keys], int]] = {
    "train": _train,
    "sweep": _sweep,
    "grow": _grow,
    "prepare": _prepare,
    "convert": _convert,
    "report": _report,
    "keep": _keep,
    "plan": _plan,
    "fit": _fit,
    "evaluate": _evaluate,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="growlm", description="Language models that grow while they train.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    for name, function in _COMMANDS.items():
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__, allow_abbrev=False)
        for option, settings in OPTIONS[name].plain.items():
            sub.add_argument(option, **settings)
        sub.epilog = "; ".join(f"{option}.key=value {says}" for option, says in OPTIONS[name].keys.items())
    return parser


def _dispatch(arguments: Sequence[str]) -> int:
    args, rest = _parser().parse_known_args(arguments)
    options = OPTIONS[args.command]
    keys = {name: [text for text in rest if text.startswith(f"{name}.")] for name in options.keys}
    taken = [text for texts in keys.values() for text in texts]
    if strangers := [text for text in rest if text not in taken]:
        allowed = [*options.plain, *(f"{name}.key=value" for name in options.keys)]
        raise unknown(f"argument of {args.command}", strangers[0], allowed)
    given = {name: [text.removeprefix(f"{name}.") for text in texts] for name, texts in keys.items()}
    return _COMMANDS[args.command](args, given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0 when it is done, 1 when it failed, 2 for bad input, 75 when it was asked to stop."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    code = _outcome(arguments)
    if code and "jax" in sys.modules:
        from growlm.training.processes import leave

        leave(code)
    return code


def _outcome(arguments: Sequence[str] | None) -> int:
    """What a command returns, or a line for the way in which it ended."""
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
        print("growlm: interrupted, and nothing was begun or left half-done", file=sys.stderr)
        return 130
    except RuntimeError as error:
        return _ended(error)


def _ended(error: RuntimeError) -> int:
    """The ways in which a command may end early, each a line; anything else is a bug and keeps its trace."""
    from growlm.training.grow import BrokenClaimError
    from growlm.training.loop import DivergedError, StoppedError
    from growlm.training.processes import lost_peer

    if lost_peer(error):
        print(f"growlm: another process of the job is gone: {str(error).splitlines()[0]}", file=sys.stderr)
        print("growlm: the same command, started for all, goes on from the last checkpoint", file=sys.stderr)
        return 1
    if not isinstance(error, DivergedError | StoppedError | BrokenClaimError):
        raise error
    print(f"growlm: {error}", file=sys.stderr)
    return STOPPED if isinstance(error, StoppedError) else 1


if __name__ == "__main__":
    sys.exit(main())
