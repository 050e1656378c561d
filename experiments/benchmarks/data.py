"""How many tokens a second one core makes into batches, against copying the same windows out of plain np.memmap.

    python experiments/benchmarks/data.py                          # over shards of random tokens, written for it
    python experiments/benchmarks/data.py --corpus=runs/novels     # over a folder of growlm prepare

All of it runs on one core, the thread that reads ahead too. The two take turns, round after round, so that a machine
whose load changes meets both alike; the ratio is the median over rounds of one to its neighbour. The pages are in
memory after the first round: a disk that is read for the first time is another question.

Cost: half a minute and 134 MB of disk.

Aim: at least 20 million tokens a second at length 2048, which no accelerator outruns: 16 TPU v5p chips train a model of
1.1B parameters at about half a million.
"""

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arguments import Parser, exit_code, positive
from cores import busy_cores
from turns import CPU_TIME, clock, in_words, one_core, ratios_of, spread

from growlm.data import batches, load_corpus
from growlm.data.shards import ShardedTokens
from growlm.training.metrics import commit, hardware

SHARDS, SHARD = 8, 2**23  # files, and tokens in each


def write_shards(folder: Path, size: int = SHARD) -> list[Path]:
    """Files of so many random tokens each, uint16."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.bin" for i in range(SHARDS)]
    for path in paths:
        rng.integers(32_000, size=size, dtype=np.uint16).tofile(path)
    return paths


def shards_of(folder: str) -> tuple[list[Path], str]:
    """The training shards of a prepared folder, and their type."""
    load_corpus(folder)  # checked
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    names = [row["name"] for row in manifest["shards"] if row["split"] == "train"]
    return [Path(folder) / f"{name}.bin" for name in names], manifest["dtype"]


def plain_copies(maps: Sequence[np.ndarray], batch: int, length: int) -> Iterator[np.ndarray]:
    """Batches of windows in random order, and nothing else: no epochs, no place to resume from."""
    rng, width = np.random.default_rng(0), length + 1
    places = [(each, i * width) for each in maps for i in range(len(each) // width)]
    while True:
        chosen = [places[i] for i in rng.integers(len(places), size=batch)]
        yield np.stack([each[start : start + width] for each, start in chosen]).astype(np.int32)


def rate(source: Iterator[np.ndarray], count: int, now: Callable[[], float]) -> float:
    """Million tokens a second over the next batches."""
    began = now()
    tokens = sum(rows.shape[0] * (rows.shape[1] - 1) for rows in itertools.islice(source, count))
    return tokens / (now() - began) / 1e6


def measure(
    paths: Sequence[Path], dtype: str, batch: int, length: int, rounds: int, count: int, cpu_time: bool = False
) -> dict[str, Any]:
    """Both, in turn."""
    maps = [np.memmap(path, dtype, mode="r") for path in paths]
    tokens = ShardedTokens([np.asarray(each) for each in maps])
    ours = batches(tokens, seed=0, batch=batch, length=length, start=0)
    plain = plain_copies(maps, batch, length)
    now = clock(cpu_time)
    rate(ours, count, now), rate(plain, count, now)
    pairs = [(rate(ours, count, now), rate(plain, count, now)) for _ in range(rounds)]
    return {
        "case": "batches",
        "million_tokens_per_second": statistics.median(one for one, _ in pairs),
        "plain": statistics.median(other for _, other in pairs),
        **spread([one / other for one, other in pairs]),
    }


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--corpus", metavar="DIR", help="a folder of growlm prepare")
    parser.add_argument("--batch", type=positive, default=64, metavar="N")
    parser.add_argument("--length", type=positive, default=2048, metavar="N")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N")
    parser.add_argument("--count", type=positive, default=150, metavar="N", help="batches in a round")
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Prints what was measured, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, one_core():
        paths, dtype = shards_of(args.corpus) if args.corpus else (write_shards(Path(folder)), "<u2")
        busy = [busy_cores()]
        result = measure(paths, dtype, args.batch, args.length, args.rounds, args.count, args.cpu_time)
        busy.append(busy_cores())
    print(f"batches of {args.batch} x {args.length} from {len(paths)} shards of {dtype}, on one core")
    print(f"growlm        {result['million_tokens_per_second']:7.1f} million tokens/s")
    print(f"plain memmap  {result['plain']:7.1f} million tokens/s")
    print(f"ratio            {in_words(result)}")
    if None not in busy:
        print("cores busy with other processes: {:.1f} before, {:.1f} after".format(*busy))
    about = {"ratios": ratios_of([result]), "commit": commit(), "hardware": hardware()}
    print(json.dumps(result | vars(args) | about))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("data", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
