"""How fast `growlm prepare` makes text into token shards, against the tokenizer's library alone on the same documents.

    python experiments/benchmarks/prepare.py                                    # on the standard library's own text
    python experiments/benchmarks/prepare.py --source=novels --tokenizer=gpt2   # folders of yours

What the library does alone is to encode the documents on one core, a batch of about a megabyte at a time, and nothing
else: no reading, no hold-out, no file. The two take turns, round after round. The ratio is the median over rounds of
text a second of each worker of `growlm prepare` to that of the library, so that 1 would be a prepare that costs
nothing but tokens and loses nothing to a second worker. It starts its processes anew in every round.

Cost: about a minute, and a small part of the text on the disk. Needs the extra `data`. Aim: at least 0.8.
"""

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import Parser, exit_code, positive
from cores import about_load, busy_cores, host_threads
from turns import CPU_TIME, clock, in_words, ratios_of, speed, take_turns

from growlm.data.documents import PIECE_BYTES, Reading
from growlm.data.prepare import Request, prepare
from growlm.data.sources import list_parts
from growlm.data.tokenizers import load_tokenizer
from growlm.data.vocabulary import train_tokenizer
from growlm.training.metrics import commit, hardware

VOCAB = 8192  # of a tokenizer that is trained on the first megabyte where none is named


def write_library(file: Path, size: int) -> None:
    """Python files of the standard library as a record a line, about so many bytes, as often as it takes."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(root.glob("*.py"))]
    with file.open("w", encoding="utf-8") as lines:
        number = 0
        while lines.tell() < size:
            lines.write(json.dumps({"text": f"{texts[number % len(texts)]}# {number}\n"}) + "\n")
            number += 1


def texts_of(source: str) -> list[list[str]]:
    """All text of a source, as growlm reads it, in batches of about a megabyte."""
    batches: list[list[str]] = [[]]
    for part in list_parts([source], "train"):
        for document in part.documents(Reading()):
            for piece in document.pieces:
                if sum(map(len, batches[-1])) >= PIECE_BYTES:
                    batches.append([])
                batches[-1].append(piece)
    return batches


def measure(source: str, tokenizer: str, folder: Path, workers: int, rounds: int, cpu_time: bool) -> dict[str, Any]:
    """Megabytes a second of both for each core, in turns, and the ratio."""
    batches, output = texts_of(source), folder / "prepared"
    megabytes = sum(len(text.encode()) for batch in batches for text in batch) / 1e6
    library = load_tokenizer(tokenizer)

    def encode() -> None:
        for batch in batches:
            library.encode_all(batch)

    def shards() -> None:
        shutil.rmtree(output, ignore_errors=True)
        prepare(Request((source,), output, tokenizer, workers=workers))

    times = take_turns({"growlm": shards, "library": encode}, rounds, clock(cpu_time))
    if not cpu_time:
        times["growlm"] = [workers * seconds for seconds in times["growlm"]]
    rates = {name: megabytes / min(seconds) for name, seconds in times.items()}
    return {"case": "text", "text": megabytes, "megabytes_per_second": rates} | speed(times, "growlm", "library")


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--source", metavar="SOURCE", help="as growlm prepare takes it")
    parser.add_argument("--tokenizer", metavar="SOURCE", help=f"the same (default: trained, {VOCAB} tokens)")
    parser.add_argument("--megabytes", type=positive, default=32, metavar="N", help="of text, where no source is named")
    parser.add_argument("--workers", type=positive, default=host_threads(), metavar="N")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Prints what was measured, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    busy = [busy_cores()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = args.source or str(folder / "library.jsonl")
        if not args.source:
            write_library(Path(source), args.megabytes * 10**6)
        if not args.tokenizer:
            (folder / "tokenizer").mkdir()
            train_tokenizer("bpe", VOCAB, texts_of(source)[0], folder / "tokenizer")
        tokenizer = args.tokenizer or str(folder / "tokenizer")
        result = measure(source, tokenizer, folder, args.workers, args.rounds, args.cpu_time)
    busy.append(busy_cores())
    rates = result["megabytes_per_second"]
    print(f"{result['text']:.1f} MB of text, {args.workers} workers; megabytes a second for each core")
    print(f"growlm prepare   {rates['growlm']:6.2f}")
    print(f"library alone    {rates['library']:6.2f}")
    print(f"ratio            {in_words(result)}")
    print(about_load(busy))
    about = {"busy_cores": busy, "commit": commit(), "hardware": hardware()}
    print(json.dumps({**result, "ratios": ratios_of([result]), **vars(args), **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("prepare", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
