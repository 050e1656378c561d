"""Every ratio of growlm's speed on a CPU in one go, beside the last record: what got slower by more than its noise.

    python experiments/benchmarks/bench.py                   # make bench
    python experiments/benchmarks/bench.py --write           # and the record is of this run
    python experiments/benchmarks/bench.py --only=growth     # may be repeated

Each benchmark is measured in its quick form, on one core and by processor time, so that other work on the machine
disturbs it little. What is kept and compared are ratios alone, each of two things that took turns in one run: growlm's
time and that of PyTorch, of a copy, of a library. They say less of the machine than seconds do, but not nothing, and
where the record is from another one, that is said.

A ratio has its median and its range over rounds. It got slower, or faster, where both medians lie outside of the
other's range and they differ by more than FLOOR. Prints a line of JSON for each benchmark as it ends, then a table.
Returns 0, 1 where something got slower or failed, 2 for bad input.

Cost: minutes of one core; the aim is 10 at most, all together. What a benchmark needs and is not installed is said.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from arguments import Parser, exit_code
from cores import busy_cores
from turns import in_words, one_core

from growlm.commands.options import installed_version
from growlm.errors import InputError
from growlm.files import read_json, write_json
from growlm.training.metrics import commit, hardware

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "record.json"
FLOOR = 0.05  # the least change that is one, whatever the ranges are
PACKAGES = ("jax", "jaxlib", "numpy", "torch", "transformers", "tokenizers", "lm_eval")


class Quick(NamedTuple):
    """The quick form of a benchmark, which takes less than a minute or two: whether more is better, and arguments."""

    more_is_better: bool
    arguments: tuple[str, ...]


SMALL = ("--layers=8", "--embed=512", "--heads=8", "--kv_heads=8", "--mlp=1408", "--vocab=8192")
TINY = ("--layers=4", "--embed=128", "--heads=2", "--kv_heads=1", "--mlp=352", "--vocab=4096")
BENCHMARKS = {
    "train_step": Quick(True, ("--shape=demo", "--compare=torch", "--seconds=0.5", "--cpu_time")),
    "growth": Quick(False, (*SMALL, "--rounds=7", "--cpu_time")),
    "data": Quick(True, ("--rounds=5", "--count=20", "--cpu_time")),
    "prepare": Quick(True, ("--megabytes=12", "--workers=1", "--cpu_time")),
    "generation": Quick(True, ("--new=64", "--cpu_time")),
    "evaluation": Quick(True, (*TINY, "--limit=8", "--cpu_time")),
    "experts": Quick(True, ("--ways=blocks", "--cpu_time")),
    "compile_time": Quick(
        False, ("--layers=4", "--layers=24", "--case=step, remat full", "--case=growth, direct", "--rounds=3")
    ),
}

Ratio = Mapping[str, float]  # ratio, least, most


def measured(name: str) -> dict[str, Any]:
    """What a benchmark says in its quick form, run by itself. Raises InputError with its reason, RuntimeError."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *BENCHMARKS[name].arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise (InputError if done.returncode == 2 else RuntimeError)(lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


def change(before: Ratio, now: Ratio, more_is_better: bool) -> float | None:
    """How much faster a ratio is than it was, as a share, negative where it is slower; None within its noise."""
    if not more_is_better:
        before, now = _inverse(before), _inverse(now)
    share = now["ratio"] / before["ratio"] - 1
    within = _holds(before, now["ratio"]) or _holds(now, before["ratio"])
    return None if within or abs(share) <= FLOOR else share


def _holds(ratio: Ratio, value: float) -> bool:
    return ratio["least"] <= value <= ratio["most"]


def _inverse(ratio: Ratio) -> Ratio:
    return {"ratio": 1 / ratio["ratio"], "least": 1 / ratio["most"], "most": 1 / ratio["least"]}


class Line(NamedTuple):
    """What is said of one ratio, and whether it got slower."""

    text: str
    slower: bool = False


def compare(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[Line]:
    """A line for each ratio of a benchmark, beside its record: {"arguments", "ratios"}, or None where there is none."""
    known = before["ratios"] if before and before["arguments"] == now["arguments"] else {}
    for case, ratio in now["ratios"].items():
        found = f"{name + ', ' + case:<36} {in_words(ratio):<24}"
        if case not in known:
            yield Line(f"{found} new")
            continue
        share = change(known[case], ratio, BENCHMARKS[name].more_is_better)
        said = "as before" if share is None else f"{'FASTER' if share > 0 else 'SLOWER'} by {abs(share):.0%}"
        yield Line(f"{found} {said}, was {in_words(known[case])}", share is not None and share < 0)


def about() -> dict[str, Any]:
    """Where, when and with what a run is measured."""
    versions = {name: found for name in PACKAGES if (found := installed_version(name))}
    return {
        "hardware": hardware(),
        "processor": _processor(),
        "versions": {"python": sys.version.split()[0], **versions},
        "commit": commit(),
        "date": f"{datetime.date.today()}",
        "busy_cores": busy_cores(),
    }


def _processor() -> str | None:
    """The processor's name, where the system has it in a file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine and the libraries is not that of the record."""
    pairs = [(name, before[name], now[name]) for name in ("commit", "hardware", "processor")]
    pairs += [(name, before["versions"].get(name), found) for name, found in now["versions"].items()]
    return [f"{name} {then}, now {found}" for name, then, found in pairs if then != found]


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="this benchmark; may be repeated")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="what is compared with")
    parser.add_argument("--write", action="store_true", help="write what is measured into the record")
    return parser


def benchmark(arguments: Sequence[str]) -> bool:
    """Measures, prints and compares; whether all is as fast as it was."""
    args = _parser().parse_args(arguments)
    record = read_json(args.record, "the record") if args.record.exists() else {}
    now, lines, good = {}, [], True
    with one_core():
        for name in args.only or BENCHMARKS:
            here = about()
            try:
                ratios = measured(name)["ratios"]
            except (InputError, RuntimeError) as error:
                lines.append(f"{name:<36} not measured: {error}")
                good &= isinstance(error, InputError)
                continue
            now[name] = {"arguments": [*BENCHMARKS[name].arguments], "ratios": ratios, **here}
            print(json.dumps({"benchmark": name, "ratios": ratios}), flush=True)
            for text, slower in compare(name, record.get(name), now[name]):
                lines.append(text)
                good &= not slower
    print("\n" + "\n".join(lines))
    found = [each for name in now if name in record for each in differences(record[name], now[name])]
    print("\n".join(f"the record has {each}" for each in dict.fromkeys(found)))
    if args.write:
        write_json(args.record, record | now)
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks. Returns 0, 1 where something got slower or failed, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    good = []
    return exit_code("bench", lambda: good.append(benchmark(arguments))) or int(not good[0])


if __name__ == "__main__":
    sys.exit(main())
