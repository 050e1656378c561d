"""`growlm train`: trains one run."""

import argparse

from growlm.commands.options import CONFIG, CONFIG_KEYS, WATCHING, WORKDIR, Keys, command_line, instruments

OPTIONS = {
    "--workdir": WORKDIR,
    "--config": CONFIG,
    **WATCHING,
}
KEYS = CONFIG_KEYS


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    from growlm.report.report import summarise, table
    from growlm.training.config import build_run, load_config
    from growlm.training.loop import stop_requests
    from growlm.training.processes import is_first, join_processes
    from growlm.training.run import train
    from growlm.training.sweep import reproduction

    join_processes()
    run = build_run(load_config(args.config, keys["--config"]))
    # The table too is within: a request to stop that comes while it is printed finds all saved.
    with stop_requests() as stop:
        how = instruments(args), args.compilation_cache
        train(run, args.workdir, stop, *how, reproduction(command_line()))
        if is_first():
            print(table(summarise(args.workdir)))
    return 0
