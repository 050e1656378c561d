"""`growlm train`: trains one run."""

import argparse

from growlm.commands import options
from growlm.commands.options import CONFIG, CONFIG_KEYS, PROFILING, TRACK, WORKDIR, Keys

OPTIONS = {"--workdir": WORKDIR, "--config": CONFIG, "--track": TRACK, **PROFILING}
KEYS = CONFIG_KEYS
TAKES_SIGNALS = True  # from the first moment to the last: `stop_requests` is between


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command; returns the exit code."""
    options.announce_loading()
    from growlm.buckets import mirrored
    from growlm.report.report import summarise, table
    from growlm.training.config import build_run, experiment_text, load_config
    from growlm.training.goodput import process_seconds
    from growlm.training.metrics import reproduction
    from growlm.training.own_process import own_process
    from growlm.training.processes import is_first, stop_requests
    from growlm.training.run import train

    own_process()
    config = build_run(load_config(args.config, keys["--config"]))
    # The table too is within: a request to stop that comes while it is printed finds all saved.
    with stop_requests() as stop:
        metadata = reproduction(options.command_line(), experiment_text(args.config))
        profiling = options.profiling_config(args)
        train(
            config,
            args.workdir,
            stop,
            profiling=profiling,
            cache=args.compilation_cache,
            metadata=metadata,
            trackers=args.track or (),
            seconds_before=process_seconds(),
        )
        if is_first():
            with mirrored(args.workdir) as mirror:
                print(table(summarise(mirror.folder)))
    return 0
