"""How many tokens a second growlm writes, against transformers' own `generate`: one Llama, greedy, float32, on CPU.

    python experiments/benchmarks/generation.py
    taskset -c 0 python experiments/benchmarks/generation.py --cpu_time      # beside other work

The model is written as a Hugging Face folder, and transformers reads it from there. Prompts are random tokens, equally
long, and no token ends a text. The two take turns, round after round, and the ratio is the median over rounds of
transformers' time to growlm's. The first tokens of both must be equal. What growlm compiles is not in it, nor what
transformers does at its first call; what is, on both sides, is everything from the prompts' tokens to the new ones.

PyTorch's threads spin while they wait for each other: where the cores are not idle, one core compares one thread with
one.

Cost: about two minutes. Needs torch and transformers. Aim: at least 0.7. Results are in experiments/README.md.
"""

import dataclasses
import json
import os
import sys
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

from growlm.data.tokenizers import Tokenizer, load_tokenizer
from growlm.evaluation import LanguageModel, Sampling, generate
from growlm.formats.export import write_model
from growlm.models import ModelConfig, Params, init, parameter_count
from growlm.training.metrics import commit, hardware

SIZES = {"layers": 8, "embed": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp": 704, "vocab": 8192}
COMPARED = 4  # tokens of every row: of random weights, later ones may differ by a rounding


def numbers(vocab: int) -> Tokenizer:
    """A tokenizer of texts that are the numbers of their tokens, of which none ends a text."""
    return dataclasses.replace(
        load_tokenizer("bytes"),
        vocab=vocab,
        eos=-1,
        encode_all=lambda texts: [list(map(int, text.split())) for text in texts],
        decode=lambda ids: " ".join(map(str, ids)),
    )


def by_growlm(
    config: ModelConfig, params: Params, prompt_BT: np.ndarray, new: int, dtype: str = "float32"
) -> Callable[[], np.ndarray]:
    """What writes so many new tokens after every prompt: int[B, new]."""
    length = prompt_BT.shape[1] + new
    model = LanguageModel(config, params, numbers(config.vocab), length=length, prefix=0, dtype=dtype)
    texts = [" ".join(map(str, row)) for row in prompt_BT]
    return lambda: np.array([text.split() for text in generate(model, texts, Sampling(most=new))], int)


def by_transformers(folder: Path, prompt_BT: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    """The same by the model in a Hugging Face folder."""
    import torch
    import transformers

    torch.set_num_threads(host_threads())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor(prompt_BT)
    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def write() -> np.ndarray:
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :].numpy()

    return write


def measure(config: ModelConfig, batch: int, prompt: int, new: int, rounds: int, cpu_time: bool) -> dict[str, Any]:
    """Tokens a second of both, in turns, and the ratio."""
    params = init(config, jax.random.key(0))
    prompt_BT = np.random.default_rng(0).integers(config.vocab, size=(batch, prompt))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"torch_dtype": "float32", "max_position_embeddings": prompt + new}
        write_model(Path(folder, "model"), config, params, settings=settings)
        work = {
            "growlm": by_growlm(config, params, prompt_BT, new),
            "transformers": by_transformers(Path(folder, "model"), prompt_BT, new),
        }
        ours, theirs = (write()[:, :COMPARED] for write in work.values())
        if (ours != theirs).any():
            raise RuntimeError(f"these are not one model: they write {ours[0]} and {theirs[0]}")
        times = take_turns(work, rounds, clock(cpu_time))
    rates = {name: batch * new / min(seconds) for name, seconds in times.items()}
    found = {"case": f"batch {batch}", "batch": batch, "tokens_per_second": rates}
    return found | speed(times, "growlm", "transformers")


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    add_sizes(parser, SIZES)
    parser.add_argument("--batch", type=positive, action="append", metavar="N", help="rows (default: 1, then 8)")
    parser.add_argument("--prompt", type=positive, default=64, metavar="N", help="tokens of a prompt")
    parser.add_argument("--new", type=positive, default=128, metavar="N", help="tokens written after it")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N")
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each batch as it is measured, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    check_installed(("torch", "transformers"))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    config = ModelConfig(**{size: getattr(args, size) for size in SIZES})
    busy = [busy_cores()]
    print(f"{parameter_count(config):,} parameters, {args.prompt} tokens and {args.new} new ones, greedy, float32")
    print(f"{'batch':>5} {'tokens/s':>9} {'transformers':>13}  ratio (range)", flush=True)
    rows = []
    for batch in args.batch or (1, 8):
        rows.append(measure(config, batch, args.prompt, args.new, args.rounds, args.cpu_time))
        rates = rows[-1]["tokens_per_second"]
        print(f"{batch:>5} {rates['growlm']:>9.0f} {rates['transformers']:>13.0f}  {in_words(rows[-1])}", flush=True)
    busy.append(busy_cores())
    print(about_load(busy))
    about = {name: version(name) for name in ("torch", "transformers")}
    about |= {"commit": commit(), "hardware": hardware(), "threads": host_threads(), "busy_cores": busy}
    print(json.dumps({"cases": rows, "ratios": ratios_of(rows), **vars(args), **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("generation", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
