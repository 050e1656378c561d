"""`growlm archive`: copies the records of a sweep, without its checkpoints; report and fit read the copy."""

import argparse

from growlm.commands.options import Keys, flag, one, place, records

OPTIONS = {
    "--workdir": one("DIR", "folder of the sweep", records, required=True),
    "--output": one("DIR", "new folder", place, required=True),
    "--ended": flag("leave out the runs that have not ended; `growlm sweep` in a copy of DIR trains those alone"),
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    from growlm.report.archive import archive

    print(f"written: {archive(args.workdir, args.output, args.ended)}")
    return 0
