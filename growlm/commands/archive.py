"""`growlm archive`: copies the records of a sweep, without its checkpoints; report and fit read the copy."""

import argparse
from pathlib import Path

from growlm.commands.options import WORKDIR, Keys, one

OPTIONS = {
    "--workdir": WORKDIR,
    "--output": one("DIR", "new folder", Path, required=True),
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    from growlm.report.archive import archive

    print(f"written: {archive(args.workdir, args.output)}")
    return 0
