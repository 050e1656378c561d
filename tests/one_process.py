"""`growlm` as one process of a job; the first line it prints says which share of every batch it feeds."""

import sys

from growlm.__main__ import main
from growlm.training import loop

batches = loop.batches


def watched(*args, **options):
    print("share", *options["shard"], flush=True)
    return batches(*args, **options)


loop.batches = watched
sys.exit(main(sys.argv[1:]))
