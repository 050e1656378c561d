"""A run so small that a test can train it: text of a few words, models of 16 dimensions, batches of 64 tokens."""

import contextlib
import json
import random
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from growlm.checked import KEY
from growlm.errors import StoppedError
from growlm.training.config import build_run
from growlm.training.run import train
from growlm.training.saved import find_saved, read_state
from growlm.training.variants import build_sweep

BATCH, LENGTH = 4, 16
STEP = BATCH * LENGTH  # tokens
MODEL = {"layers": 1, "embed": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 24, "vocab": 256}
WORDS = ("a", "model", "that", "grows", "while", "it", "trains", "layer", "by", "layer", "and", "goes", "on", "larger")


def write_corpus(folder: Path) -> str:
    """A text file of 64 kB, the same every time."""
    path = folder / "corpus.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=15_000)))
    return str(path)


def stage(steps: int, layers: int = 1, **options) -> dict:
    """A stage; one with a growth where options say so."""
    settings = {"model": MODEL | {"layers": layers}, "tokens": steps * STEP, "batch": BATCH, "length": LENGTH}
    return settings | {"schedule": {"kind": "constant", "peak_lr": 1e-2}} | options


def grown(steps: int, layers: int = 2, **options) -> dict:
    return stage(steps, layers, **({"growth": {"operator": "direct"}} | options))


def run(corpus: str, *stages: dict, **options) -> dict:
    """The settings of a run, as an experiment file has them."""
    settings = {"corpus": corpus, "stages": list(stages), "log_every_steps": 1, "evaluation": {"batches": 2}}
    return settings | options


def run_config(corpus: str, *stages: dict, **options):
    return build_run(run(corpus, *stages, **options))


def sweep(corpus: str, runs: dict, baseline: str, **options) -> dict:
    """The settings of a sweep; `runs` maps names to stages."""
    common = run(corpus, **options)
    del common["stages"]
    return common | {"runs": {name: {"stages": stages} for name, stages in runs.items()}, "baseline": baseline}


def sweep_config(*args, **options):
    return build_sweep(sweep(*args, **options))


def write_config(path: Path, settings: dict) -> str:
    """An experiment file with these settings."""
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings!r})\n"
    )
    return str(path)


def copy_of(tree):
    """NumPy arrays that share nothing with the tree."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def train_in_parts(config, folder: Path) -> int:
    """Trains a run that is told to stop after every step, and goes on until it ends; how often it stopped."""
    stop = threading.Event()
    stop.set()
    for stops in range(20):
        with contextlib.suppress(StoppedError):
            train(config, folder, stop)
            return stops
    raise AssertionError("the run does not end")


def records(folder: Path) -> list[dict]:
    """metrics.jsonl."""
    return read_lines(folder / "metrics.jsonl")


def read_json(path: Path):
    """What a JSON file says, without its checksum."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return {key: item for key, item in value.items() if key != KEY} if isinstance(value, dict) else value


def read_lines(path: Path) -> list[dict]:
    """The objects in a file of JSON lines, without their checksums."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{key: item for key, item in line.items() if key != KEY} for line in lines]


def losses(folder: Path) -> list[float]:
    """The training losses of metrics.jsonl."""
    return [record["loss"] for record in records(folder) if record["loss"] is not None]


def timeless(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    clock = ("seconds", "tokens_per_second", "data_wait", "pause_seconds", "time")
    return [{key: value for key, value in record.items() if key not in clock} for record in records(folder)]


def checkpoints(folder: Path) -> dict[tuple[int, int], Path]:
    """Every finished checkpoint under a run folder or a store, by (first step of its stage, step)."""
    places = ("stage.json", "*/stage.json", "*/*/stage.json")  # no deeper: what orbax is writing there may vanish
    stages = [(path.parent, json.loads(path.read_text())) for place in places for path in folder.glob(place)]
    return {
        ((settings["parent"] or {"last_step": 0})["last_step"], int(path.name)): path
        for home, settings in stages
        for path in home.glob("checkpoints/*")
        if path.name.isdecimal()
    }


def load_saved(folder: Path, step: int | None = None) -> tuple:
    """The model's shape, the optimizer and the whole training state that a folder holds."""
    saved = find_saved(folder, step)
    return saved.model, saved.optimizer, read_state(saved)


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read by orbax without growlm."""
    tree = ocp.PyTreeCheckpointer().restore(path / "default")
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_arrays(have: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Bit for bit, dtypes too."""
    assert have.keys() == want.keys()
    for path, value in want.items():
        assert (have[path].dtype, have[path].shape) == (value.dtype, value.shape), path
        assert have[path].tobytes() == value.tobytes(), path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder with its content: what must be the same where nothing may change."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def remove(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
