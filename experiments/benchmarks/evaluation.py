"""How fast the paper's eight benchmarks are scored, against lm-evaluation-harness's own backend, on one checkpoint.

    python experiments/benchmarks/evaluation.py --data_dir=evals      # a folder as growlm evaluate takes it
    taskset -c 0 python experiments/benchmarks/evaluation.py --cpu_time

The checkpoint is a small Llama that growlm writes, with a tokenizer of its own; both read it from its folder. Where
the folder of data has no file of a task, or there is none, its documents are drawn: words of the standard library's
text, as many as the task's own documents have about. The harness asks both the same questions, and the two take turns;
the ratio is the median over rounds of the harness's time to growlm's. Before, each answers once: log-likelihoods must
agree, and that is where growlm compiles, which is printed as the first time.

Cost: about three minutes. Needs the extra `eval`, torch, transformers and accelerate. Aim: at least 1.
"""

import json
import os
import random
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from arguments import Parser, add_sizes, check_installed, exit_code, positive
from cores import about_load, busy_cores, host_threads
from turns import CPU_TIME, clock, in_words, ratios_of, speed, take_turns

from growlm.data.tokenizers import load_tokenizer
from growlm.data.vocabulary import train_tokenizer
from growlm.formats.export import write_model
from growlm.models import ModelConfig, init, parameter_count
from growlm.training.metrics import commit, hardware

SIZES = {"layers": 6, "embed": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp": 704, "vocab": 8192}
LENGTH = 1024
DRAWN = 64  # documents of a task that has no file
NEEDED = ("lm_eval", "torch", "transformers", "accelerate", "tokenizers")


def library_words() -> tuple[str, list[str]]:
    """A text to train a tokenizer on, and words of it."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return text, sorted({word for word in text.split() if word.isalpha() and len(word) < 12})


def drawn_records(words: list[str]) -> dict[str, Callable[[int], dict[str, Any]]]:
    """By task, what draws a document with the fields and about the lengths of the task's own."""
    rng = random.Random(0)

    def some(count: int) -> str:
        return " ".join(rng.choices(words, k=max(1, round(count * rng.uniform(0.5, 1.5)))))

    def question(asked: int, answered: int) -> dict[str, Any]:
        choices = {"text": [some(answered) for _ in range(4)], "label": list("ABCD")}
        return {"question": f"{some(asked)}?", "choices": choices, "answerKey": rng.choice("ABCD")}

    def science(number: int) -> dict[str, Any]:
        wrong = {f"distractor{i}": some(1) for i in (1, 2, 3)}
        return {"question": f"{some(14)}?", "support": some(80), "correct_answer": some(1), **wrong}

    def gap(number: int) -> dict[str, Any]:
        return {"sentence": f"{some(12)} _ {some(6)}.", "option1": some(1), "option2": some(1), "answer": "1"}

    return {
        "lambada_openai": lambda number: {"text": some(70)},
        "arc_challenge": lambda number: question(22, 5),
        "arc_easy": lambda number: question(20, 4),
        "logiqa": lambda number: {
            "context": some(75),
            "question": some(10),
            "options": [some(15) for _ in range(4)],
            "label": rng.choice("abcd"),
        },
        "piqa": lambda number: {"goal": some(8), "sol1": some(18), "sol2": some(18), "label": number % 2},
        "sciq": science,
        "winogrande": gap,
        "wikitext": lambda number: {"page": some(3000)},
    }


def write_data(folder: Path, given: Path | None, words: list[str]) -> list[str]:
    """Files of all tasks in a folder; the names of those that are drawn."""
    files = {path.name: path for path in given.iterdir()} if given else {}
    for name, path in files.items():
        (folder / name).symlink_to(path.absolute())
    from growlm.evaluation.tasks import WIKITEXT

    drawn = []
    for task, record in drawn_records(words).items():
        there = {f"{task}.jsonl", *(WIKITEXT if task == "wikitext" else ())}
        if not there & set(files):
            lines = [json.dumps(record(number)) for number in range(DRAWN)]
            (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            drawn.append(task)
    return drawn


def write_checkpoint(folder: Path, config: ModelConfig, text: str) -> None:
    """A Hugging Face folder with random weights and a tokenizer, which both sides can read."""
    import transformers

    tokenizer = folder.parent / "tokenizer"
    tokenizer.mkdir()
    train_tokenizer("bpe", config.vocab, [text], tokenizer)
    end = load_tokenizer(tokenizer).settings["eos_token"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token=end, pad_token=end
    )
    settings = {"torch_dtype": "float32", "max_position_embeddings": LENGTH}
    write_model(folder, config, init(config, jax.random.key(0)), settings=settings, beside=fast.save_pretrained)


def measure(folder: Path, data_dir: Path, limit: int, batch: int, rounds: int, cpu_time: bool) -> dict[str, Any]:
    """Seconds of both, in turns, and the ratio."""
    import torch
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    from growlm.commands.evaluate import open_checkpoint
    from growlm.evaluation.harness import Adapter
    from growlm.evaluation.tasks import PAPER, manager

    torch.set_num_threads(host_threads())
    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=batch, dtype="float32")
    ours, _ = open_checkpoint(folder)
    with manager(list(PAPER), data_dir) as tasks:
        loaded = tasks.load(list(PAPER))
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)

        def score(model: Any, samples: bool = False) -> dict[str, Any]:
            return evaluator.evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=samples)

        work = {"growlm": lambda: score(Adapter(ours)), "harness": lambda: score(theirs)}
        now, first, said = clock(cpu_time), {}, {}
        for name, model in {"growlm": Adapter(ours), "harness": theirs}.items():
            began = now()
            said[name] = _likelihoods(score(model, samples=True))
            first[name] = now() - began
        apart = float(np.max(np.abs(said["growlm"] - said["harness"]) / np.maximum(1, np.abs(said["harness"]))))
        if not apart < 1e-3:
            raise RuntimeError(f"these are not one model: their log-likelihoods are {apart:g} apart")
        times = take_turns(work, rounds, now)
    seconds = {name: min(found) for name, found in times.items()}
    found = {"case": "paper", "requests": len(said["growlm"]), "seconds": seconds, "first": first, "apart": apart}
    return found | speed(times, "growlm", "harness")


def _likelihoods(results: dict[str, Any]) -> np.ndarray:
    """The log-likelihood of every request of all tasks."""
    answers = [each for samples in results["samples"].values() for doc in samples for each in doc["resps"]]
    return np.array([one[0] if isinstance(one, tuple | list) else one for answer in answers for one in answer], float)


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    add_sizes(parser, SIZES)
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="with TASK.jsonl (default: all are drawn)")
    parser.add_argument("--limit", type=positive, default=64, metavar="N", help="documents of each task")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="rows of the harness's batches")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Prints what was measured, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    check_installed(NEEDED)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_MULTIPROC": "1"}
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    config, busy = ModelConfig(**{size: getattr(args, size) for size in SIZES}), [busy_cores()]
    with tempfile.TemporaryDirectory() as name:
        folder, data_dir = Path(name, "model"), Path(name, "data")
        data_dir.mkdir()
        text, words = library_words()
        write_checkpoint(folder, config, text)
        drawn = write_data(data_dir, args.data_dir, words)
        result = measure(folder, data_dir, args.limit, args.batch, args.rounds, args.cpu_time)
    busy.append(busy_cores())
    print(
        f"{parameter_count(config):,} parameters, {result['requests']:,} requests; drawn: {', '.join(drawn) or 'none'}"
    )
    for side, seconds in result["seconds"].items():
        print(f"{side:<8} {seconds:8.2f} s, the first time {result['first'][side]:.2f} s")
    print(f"ratio    {in_words(result)}")
    print(about_load(busy))
    about = {name: version(name) for name in NEEDED} | {"drawn": drawn, "busy_cores": busy}
    about |= {"commit": commit(), "hardware": hardware(), "threads": host_threads()}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    print(json.dumps({**result, "ratios": ratios_of([result]), **given, **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("evaluation", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
