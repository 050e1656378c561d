"""`growlm fit`: fits a law to runs or to a table, and prints it beside the paper's."""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from growlm.commands.options import Keys, one, pairs, positive
from growlm.errors import check_name, must_be
from growlm.report.fit import LAWS, fit_runs
from growlm.report.multiplier import fit_multiplier
from growlm.report.scaling import fit_scaling

MULTIPLIER, SCALING = "multiplier", "scaling"
# The laws that take an option which not all take.
TAKEN_BY = {
    "--slices": LAWS,
    "--families": (MULTIPLIER,),
    "--figures": (MULTIPLIER,),
    "--floor": (SCALING,),
    "--at": (MULTIPLIER, SCALING),
    "--column": (MULTIPLIER, SCALING),
}


def _budgets(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]


OPTIONS = {
    "--runs": one("PATH", "folder of sweeps or a sweep; scaling, multiplier: or a .csv or .json", Path, required=True),
    "--law": one("NAME", "timing, factor, scaling or multiplier", required=True),
    "--slices": one("N", "timing, factor: budgets per size (default: 4)", int),
    "--families": one("A,B", "multiplier: the families, the baseline first (default: all)"),
    "--at": one("FLOPS,..", "scaling, multiplier: budgets to ask the laws at", _budgets),
    "--floor": one("NATS", "scaling: the irreducible loss, where it is known (default: fitted)", positive),
    "--figures": one("DIR", "multiplier: where to write the figures", Path),
}
KEYS = {"--column": "what a table calls its column family, flops, loss, params or tokens"}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    log = partial(print, flush=True)
    columns = {key: str(name) for key, name in pairs("--column", keys).items()}
    check_name("law", args.law, (*LAWS, MULTIPLIER))
    for option, laws in TAKEN_BY.items():
        value = (columns or None) if option == "--column" else getattr(args, option.removeprefix("--"))
        if value is not None and args.law not in laws:
            raise must_be(option, f"left out with --law={args.law}", value if isinstance(value, int) else str(value))
    bar, at = partial(tqdm, desc="resampling", leave=False), args.at or ()
    if args.law == MULTIPLIER:
        names = args.families.split(",") if args.families else ()
        fit_multiplier(args.runs, log, columns, names, at, args.figures)
    elif args.law == SCALING:
        fit_scaling(args.runs, log, columns, args.floor, at, progress=bar)
    else:
        fit_runs(args.runs, args.law, args.slices, log, bar)
    return 0
