"""A thousand steps with two growths on a mesh of 8 fake devices; prints the losses as JSON. Run by test_numbers."""

import json
import sys
import threading
from pathlib import Path

import tiny

from growlm.training.config import build_run
from growlm.training.run import train

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
STEPS = (400, 400, 200)
BATCH = 8


def settings(corpus: str, **options) -> dict:
    """One, two and four layers; each stage has a whole schedule."""
    tokens = BATCH * tiny.LENGTH
    schedule = {"kind": "cosine", "peak_lr": 1e-3, "warmup_tokens": 20 * tokens}
    growth = {"growth": {"operator": "direct", "optimizer_state": "map"}}
    stages = [
        tiny.stage(steps, 2**number, schedule=schedule, batch=BATCH, **(growth if number else {}))
        | {"tokens": steps * tokens}
        for number, steps in enumerate(STEPS)
    ]
    stages = [stage | {"model": stage["model"] | {"kv_heads": 2}} for stage in stages]
    return tiny.run(corpus, *stages, **options)


def losses(folder: Path) -> dict[str, list[float]]:
    """The losses of training and of validation."""
    records = tiny.records(folder)
    return {name: [record[name] for record in records if record.get(name) is not None] for name in ("loss", "val_loss")}


if __name__ == "__main__":
    run = Path(sys.argv[1])
    train(build_run(settings(sys.argv[2], mesh=MESH)), run, threading.Event())
    print(json.dumps(losses(run)))
