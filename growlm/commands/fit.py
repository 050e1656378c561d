"""`growlm fit`: fits a law to the runs of sweeps, and prints it beside the paper's."""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from growlm.commands.options import Keys, one
from growlm.report.fit import fit_runs

OPTIONS = {
    "--runs": one("DIR", "folder of a sweep, or one that holds several", Path, required=True),
    "--law": one("NAME", "timing, factor or scaling", required=True),
    "--slices": one("N", "budgets per size (default: 4)", int),
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    log = partial(print, flush=True)
    fit_runs(args.runs, args.law, args.slices, log, partial(tqdm, desc="resampling", leave=False))
    return 0
