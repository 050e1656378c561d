"""`growlm report`: compares runs, and writes the page and the figures."""

import argparse

from growlm.commands.options import JSON, Keys, one, place, positive, print_json
from growlm.errors import InputError

OPTIONS = {
    "--workdir": one("DIR", "folder of a run or a sweep", place),
    "--runs": one("DIR", "folder that holds runs or sweeps, such as a sweep at several seeds", place),
    "--loss": one("X", "compare at this validation loss", positive),
    **JSON,
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    from growlm.buckets import mirrored
    from growlm.report.report import Report

    if (args.workdir is None) == (args.runs is None):
        raise InputError("report must be given either --workdir=DIR or --runs=DIR")
    folder = args.workdir or args.runs
    with mirrored(folder) as mirror:
        report = Report(mirror.folder, args.loss)
        shown = report.values() if args.json else report.text()
        page = folder / report.write().name
    if args.json:
        print_json({"sweeps": shown, "report": page})
    else:
        print(f"{shown}\n\nreport: {page}")
    return 0
