"""What starting takes, in seconds of processor: the help, the list of growths, and a run of one step of the demo.

    python experiments/benchmarks/start.py

Each is a process of its own from its start to its end, so "one step" has its validation and its checkpoint too; "cold"
is with an empty cache of compiled programs, "cached" with the one that the cold run left. What the list says is made
the first time after growlm's files have changed, and kept. Of several rounds in turns the least is said, and beside it
what importing JAX and Flax alone takes.

Cost: two minutes on two CPU cores.

Aims on a slow core: 0.3 s for the help, one second for the list, ten for the first step.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from arguments import Parser, exit_code, positive

from growlm.training.metrics import commit, hardware

CONFIG = """from ml_collections import ConfigDict

MODEL = {"layers": 2, "embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}


def get_config():
    stage = {"model": MODEL, "tokens": 1024, "batch": 8, "length": 128, "schedule": {"peak_lr": 2e-3}}
    return ConfigDict({"stages": (stage,), "remat": "full", "evaluation": {"batches": 16}})
"""


def processor_seconds(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """User and system time of a process and its children, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def round_of(folder: Path) -> dict[str, float]:
    """Each of them once, in a new folder."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    (folder / "one_step.py").write_text(CONFIG)
    train = ["-m", "growlm", "train", f"--config={folder / 'one_step.py'}"]
    processes = {
        "JAX and Flax": ["-c", "import jax, flax.linen"],
        "--help": ["-m", "growlm", "--help"],
        "grow --list, first": ["-m", "growlm", "grow", "--list"],
        "grow --list": ["-m", "growlm", "grow", "--list"],
        "one step, cold": [*train, f"--workdir={folder / 'cold'}"],
        "one step, cached": [*train, f"--workdir={folder / 'cached'}"],
    }
    return {name: processor_seconds(arguments, environment) for name, arguments in processes.items()}


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each, and a last line of JSON."""
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    args = parser.parse_args(arguments)
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(round_of(Path(folder)))
    least = {name: min(one[name] for one in rounds) for name in rounds[0]}
    for name, seconds in least.items():
        print(f"{name:<18} {seconds:>6.2f}", flush=True)
    print(json.dumps({"least": least, "rounds": rounds, "commit": commit(), "hardware": hardware()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("start", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
