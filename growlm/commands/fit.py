"""`growlm fit`: fits a law to runs or to a table, and prints it beside the paper's."""

import argparse
import inspect
import sys
from collections.abc import Callable
from functools import partial

from tqdm import tqdm

from growlm.commands.options import JSON, Keys, local, one, pairs, positive, print_json, records
from growlm.errors import check_name, must_be
from growlm.report.kaplan import fit_kaplan
from growlm.report.multiplier import fit_multiplier
from growlm.report.scaling import fit_scaling
from growlm.report.timing import fit_factor, fit_timing

# A law is a function of the runs and of what prints; it takes the options that its parameters name.
LAWS: dict[str, Callable] = {
    "timing": fit_timing,
    "factor": fit_factor,
    "scaling": fit_scaling,
    "kaplan": fit_kaplan,
    "multiplier": fit_multiplier,
}


def _budgets(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


OPTIONS = {
    "--runs": one("PATH", "folder of sweeps or a sweep; but for factor, also a .csv or .json", records, required=True),
    "--law": one("NAME", ", ".join(LAWS), required=True),
    "--slices": one("N", "timing, factor: budgets per size (default: 4)", _count),
    "--families": one("A,B", "multiplier: the families, the baseline first (default: all)", _names),
    "--at": one("FLOPS,..", "scaling, multiplier: budgets to ask the laws at", _budgets),
    "--floor": one("NATS", "scaling: the irreducible loss, where it is known (default: fitted)", positive),
    "--checkpoints": one("SHARE", "scaling, kaplan: all losses of a run but for this first share, such as 0.1", float),
    "--figures": one("DIR", "timing, factor, multiplier: where to write the figures", local),
    **JSON,
}
KEYS = {
    "--column": "what a table calls its column family, flops, loss, params, tokens, ...",
    "--borrow": "scaling: E, A, B, alpha or beta of L(N, D), where it is not fitted: a number or a law's name",
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    check_name("law", args.law, LAWS)
    law, given = LAWS[args.law], {name: value for name, value in vars(args).items() if f"--{name}" in OPTIONS}
    given |= {name.removeprefix("--"): pairs(name, keys) or None for name in KEYS}
    options = {
        name: value for name, value in given.items() if name not in ("runs", "law", "json") and value is not None
    }
    takes = inspect.signature(law).parameters
    for name, value in options.items():
        if name not in takes:
            raise must_be(
                f"--{name}", f"left out with --law={args.law}", value if isinstance(value, int) else str(value)
            )
    if "progress" in takes:
        options["progress"] = partial(tqdm, desc="resampling", leave=False)
    found = law(args.runs, partial(print, flush=True, file=sys.stderr if args.json else None), **options)
    if args.json:
        print_json({"law": args.law, "found": found})
    return 0
