"""What the scripts of this folder share: a tiny run that grows, a command in this process, and how a run ended."""

import argparse
import contextlib
import io
import random
import traceback
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from growlm.commands.dispatch import outcome
from growlm.growth.maps import MOMENTS, dual_squared
from growlm.training import processes
from growlm.training.metrics import read_records
from growlm.training.saved import find_saved, read_state

MODEL = {"layers": 1, "embed": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 24, "vocab": 256}
STAGE = {"tokens": 256, "batch": 4, "length": 16, "schedule": {"kind": "constant", "peak_lr": 1e-2}}
CLOCK = ("seconds", "tokens_per_second", "data_wait", "pause_seconds", "time")  # fields of a record
INTERRUPTED = 130


def options(text: str) -> argparse.ArgumentParser:
    """The options of a script that makes tries, with the text of its `--help`."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
    return parser


def write_run(home: Path) -> Path:
    """Write a corpus and the config of a run with a growth: two stages of four steps, a checkpoint every two."""
    home.mkdir(parents=True)
    words = random.Random(0).choices(("a", "model", "that", "grows", "while", "it", "trains"), k=15_000)
    (home / "corpus.txt").write_text(" ".join(words))
    growth = {"operator": "direct", "optimizer_state": "map"}
    grown = STAGE | {"model": MODEL | {"layers": 2}, "growth": growth}
    run = {"corpus": str(home / "corpus.txt"), "stages": [STAGE | {"model": MODEL}, grown]}
    run |= {"evaluation": {"batches": 2}, "checkpoint": {"every_tokens": 128}, "log_every_steps": 1}
    (home / "run.py").write_text(f"def get_config():\n    return {run!r}\n")
    return home / "run.py"


def call(arguments: list[str]) -> tuple[int | None, str]:
    """The exit code of a command and what it said on stderr; None with a traceback where it ended by an error."""
    said = io.StringIO()
    # Ctrl-C is for the script: a run that takes it for itself may end this process there and then.
    signals = mock.patch.object(processes, "stop_requests", lambda: contextlib.nullcontext(processes.StopRequest()))
    with signals, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = outcome(arguments)
        except Exception:
            return None, traceback.format_exc()
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code, said.getvalue()


class Leaf(NamedTuple):
    """An array of a checkpoint, to the bit. squared: it is one of squares of gradients, as growth has it."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes
    squared: bool

    def values(self) -> np.ndarray:
        """Its values in float64, of second moments the roots, which an update divides by; a negative one stays so."""
        values = np.frombuffer(self.content, self.dtype).astype(np.float64)
        return np.sign(values) * np.sqrt(np.abs(values)) if self.squared else values


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without what the clock says."""
    records = read_records(folder / "metrics.jsonl")
    return [{key: value for key, value in one.items() if key not in CLOCK} for one in records]


def arrays_of(folder: Path) -> dict[str, Leaf]:
    """Every array of the last checkpoint of a run, by its path."""
    saved, found = find_saved(folder), {}
    state, match = read_state(saved), saved.model.architecture.match_weight
    for path, leaf in jax.tree_util.tree_leaves_with_path({**vars(state), "key": jax.random.key_data(state.key)}):
        one, squared = np.asarray(leaf), MOMENTS.get(match(path)[0]) is dual_squared
        found[jax.tree_util.keystr(path)] = Leaf(one.dtype.str, one.shape, one.tobytes(), squared)
    return found
