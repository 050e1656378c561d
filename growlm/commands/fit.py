"""`growlm fit`: fits a law to runs or to a table, and prints it beside the paper's."""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from growlm.commands.options import Keys, one, pairs, positive
from growlm.errors import check_name, must_be
from growlm.report.fit import LAWS, fit_runs
from growlm.report.multiplier import fit_multiplier

MULTIPLIER = "multiplier"


def _budgets(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]


OPTIONS = {
    "--runs": one(
        "PATH",
        "folder of a sweep, or one that holds several; of --law=multiplier a .csv or .json too",
        Path,
        required=True,
    ),
    "--law": one("NAME", "timing, factor, scaling or multiplier", required=True),
    "--slices": one("N", "budgets per size (default: 4)", int),
    "--families": one("A,B", "of --law=multiplier: the families, the baseline first (default: all)"),
    "--at": one("FLOPS,..", "of --law=multiplier: budgets to ask the models at", _budgets),
    "--figures": one("DIR", "of --law=multiplier: where to write the figures", Path),
}
KEYS = {"--column": "what a table calls its column family, flops or loss"}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    log = partial(print, flush=True)
    columns = {key: str(name) for key, name in pairs("--column", keys).items()}
    check_name("law", args.law, (*LAWS, MULTIPLIER))
    only = {"--families": args.families, "--at": args.at, "--figures": args.figures, "--column": columns or None}
    only = only if args.law != MULTIPLIER else {"--slices": args.slices}
    for name, value in only.items():
        if value is not None:
            raise must_be(name, f"left out with --law={args.law}", value if isinstance(value, int) else str(value))
    if args.law == MULTIPLIER:
        names = args.families.split(",") if args.families else ()
        fit_multiplier(args.runs, log, columns, names, args.at or (), args.figures)
    else:
        fit_runs(args.runs, args.law, args.slices, log, partial(tqdm, desc="resampling", leave=False))
    return 0
