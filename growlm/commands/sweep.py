"""`growlm sweep`: trains the runs of a sweep, compares them and writes the report."""

import argparse
import sys

from growlm.commands import options
from growlm.commands.options import CONFIG, CONFIG_KEYS, PROFILING, TRACK, WORKDIR, Keys, flag, one
from growlm.errors import InputError

OPTIONS = {
    "--workdir": WORKDIR,
    "--config": CONFIG,
    "--list": flag("print the runs and their stages, and train nothing"),
    "--run": one("NAME", "train this run only, at all seeds; seed-N/NAME at one"),
    "--track": TRACK,
    **PROFILING,
}
KEYS = CONFIG_KEYS
TAKES_SIGNALS = True  # from the first moment to the last: `stop_requests` is between


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command; returns the exit code."""
    options.announce_loading()
    from growlm.buckets import mirrored
    from growlm.report.report import Report, table, verdict
    from growlm.report.search import search_text
    from growlm.training.config import experiment_text, load_config
    from growlm.training.goodput import process_seconds
    from growlm.training.own_process import own_process
    from growlm.training.processes import is_first, stop_requests
    from growlm.training.sweep import describe, plan_sweep, run_sweep
    from growlm.training.variants import build_sweep

    own_process()
    config = build_sweep(load_config(args.config, keys["--config"]))
    with mirrored(args.workdir) as mirror:
        plan = plan_sweep(config, mirror.folder)
    chosen = plan.select(args.run)
    if is_first():
        print(describe(plan, chosen), flush=True)
    if args.list:
        return 0
    with stop_requests() as stop:
        errors = run_sweep(
            plan,
            args.workdir,
            stop,
            command=options.command_line(),
            chosen=chosen,
            profiling=options.profiling_config(args),
            cache=args.compilation_cache,
            experiment=experiment_text(args.config),
            trackers=args.track or (),
            seconds_before=process_seconds(),
        )
        if not is_first():
            return 1 if errors else 0
        for name, error in errors.items():
            print(f"growlm: run {name!r} failed: {error}", file=sys.stderr)
        if not set(chosen) & set(plan.without_tries().runs):
            return 1 if errors else 0
        try:
            with mirrored(args.workdir) as mirror:
                report = Report(mirror.folder)
                rows, searched = report.only().rows, search_text(report.only().group)
                page = report.write()
            texts = table(rows), verdict(rows), searched, f"report: {args.workdir / page.name}"
            print("\n" + "\n\n".join(filter(None, texts)))
        except InputError:
            if not errors:  # else there may be nothing to report
                raise
    return 1 if errors else 0
