"""`growlm report`: compares runs, and writes the page and the figures."""

import argparse
from pathlib import Path

from growlm.commands.options import JSON, Keys, one, positive, print_json
from growlm.errors import InputError

OPTIONS = {
    "--workdir": one("DIR", "folder of a run or a sweep", Path),
    "--runs": one("DIR", "folder that holds runs or sweeps, such as a sweep at several seeds", Path),
    "--loss": one("X", "compare at this validation loss", positive),
    **JSON,
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    from growlm.report.report import compared, overview, write_report

    if (args.workdir is None) == (args.runs is None):
        raise InputError("report must be given either --workdir=DIR or --runs=DIR")
    folder = args.workdir or args.runs
    if args.json:
        print_json({"sweeps": compared(folder, args.loss), "report": write_report(folder, args.loss)})
        return 0
    print(f"{overview(folder, args.loss)}\n\nreport: {write_report(folder, args.loss)}")
    return 0
