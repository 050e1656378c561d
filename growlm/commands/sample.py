"""`growlm sample`: text that a checkpoint writes after prompts, or in a conversation on the command line."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from growlm.buckets import here
from growlm.commands.evaluate import mesh_of, open_checkpoint, read_text
from growlm.commands.options import CHECKPOINT, STEP, Keys, copied, flag, one, pairs
from growlm.data import read_sources
from growlm.data.chat import ASSISTANT, END, MARKERS, render
from growlm.data.markers import with_markers
from growlm.data.shards import read_manifest
from growlm.errors import InputError, check_range
from growlm.evaluation import LanguageModel, Sampling, generate
from growlm.evaluation.sampling import LARGEST
from growlm.formats.folder import is_hugging_face
from growlm.hub import local_folder
from growlm.training.peers import join_job
from growlm.training.processes import is_first
from growlm.training.programs import cached_on_disk
from growlm.training.saved import find_saved

OPTIONS = {
    "--checkpoint": CHECKPOINT,
    "--prompt": {"action": "append", "metavar": "TEXT", "help": "text to go on with; may be repeated"},
    "--prompts": one("FILE", "prompts, one a line", copied),
    "--samples": one("N", "texts for each prompt (default: 1)", int),
    "--max_tokens": one("N", "the most tokens of a text (default: 256)", int),
    "--temperature": one("T", "of the softmax; 0 is greedy (default: 0.7)", float),
    "--top_p": one("P", "draw from the likeliest tokens that have this probability together (default: 1)", float),
    "--top_k": one("K", "draw from the K likeliest tokens (default: all)", int),
    "--seed": one("N", "of the draws (default: 0)", int),
    "--stop": {"action": "append", "metavar": "TEXT", "help": "text before which to end; may be repeated"},
    "--chat": flag("prompts are what a user says (default for a model whose corpus is of conversations)"),
    "--system": one("TEXT", "what a conversation begins with"),
    "--json": flag("print a JSON object a line: prompt, sample, text"),
    "--batch": one("N", "texts written at once", int),
    "--tokenizer": one("SOURCE", "tokenizer to use instead of the checkpoint's"),
    "--step": STEP,
    "--length": one("N", "tokens that the model reads at once", int),
    "--dtype": one("NAME", "compute dtype: float32 (default) or bfloat16"),
}
KEYS = {"--mesh": "sets a size of the mesh, such as --mesh.tensor=2"}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command and return the exit code."""
    join_job()
    with cached_on_disk():
        return _sample(args, keys)


def _sample(args: argparse.Namespace, keys: Keys) -> int:
    prompts = [*(args.prompt or ()), *(read_text(args.prompts).splitlines() if args.prompts else ())]
    if args.prompts and not prompts:
        raise InputError(f"{args.prompts} must hold prompts, one a line, got none")
    samples = 1 if args.samples is None else args.samples
    check_range("--samples", samples, low=1)
    if args.batch is not None:
        check_range("--batch", args.batch, low=1)
    named = {"max_tokens": "most", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed"}
    given = {name: getattr(args, option) for option, name in named.items() if getattr(args, option) is not None}
    sampling = Sampling(until=tuple(args.stop or ()), **{"temperature": 0.7} | given)
    opened_as = {
        "tokenizer": args.tokenizer,
        "step": args.step,
        "length": args.length,
        "dtype": args.dtype or "float32",
    }
    model, _ = open_checkpoint(args.checkpoint, **opened_as, mesh=mesh_of(pairs("--mesh", keys)))
    begin = "" if args.system is None else render([("system", args.system)])
    chat = args.chat or has_conversations(args.checkpoint, args.step)
    if chat:
        model, sampling = talking(model), dataclasses.replace(sampling, until=(*sampling.until, *MARKERS))
    elif begin:
        raise InputError("--system is of conversations: --chat says that the checkpoint was trained on them")

    if not prompts:
        return _talk(model, sampling, begin, chat)
    contexts = [begin + render([("user", prompt)]) + ASSISTANT if chat else prompt for prompt in prompts]
    texts = generate(model, [context for context in contexts for _ in range(samples)], sampling, args.batch)
    if is_first():
        for number, text in enumerate(texts):
            prompt, sample = divmod(number, samples)
            said = {"prompt": prompts[prompt], "sample": sample, "text": text}
            many = f"== prompt {prompt + 1}, sample {sample + 1}\n" if len(texts) > 1 else ""
            print(
                json.dumps(said, ensure_ascii=False) if args.json else f"{many}{'' if chat else prompts[prompt]}{text}"
            )
    return 0


def talking(model: LanguageModel) -> LanguageModel:
    """The model as one that reads and writes conversations, which begin as documents do."""
    return dataclasses.replace(model, tokenizer=with_markers(model.tokenizer), add_bos=False)


def has_conversations(folder: Path, step: int | None) -> bool:
    """Whether there are conversations in what a checkpoint was trained on last."""
    folder = local_folder(folder)
    if is_hugging_face(folder):
        return False
    data = find_saved(folder, step).data
    manifests = [read_manifest(here(one.corpus)) for one in read_sources(data.corpus)] if data else []
    return any("chat" in manifest for manifest in manifests if manifest)


def _talk(model: LanguageModel, sampling: Sampling, begin: str, chat: bool) -> int:
    """Answers line by line: a conversation, which an empty line ends, or a text that is gone on with."""
    said = begin
    for number, line in enumerate(_lines()):
        if not line.strip():
            said = begin
            continue
        said = f"{said}{render([('user', line)])}{ASSISTANT}" if chat else line
        seed = (sampling.seed + number) % (LARGEST + 1)
        (text,) = generate(model, [said], dataclasses.replace(sampling, seed=seed))
        said += text + END
        print(text if chat else line + text, flush=True)
    return 0


def _lines() -> Iterator[str]:
    """The lines of the standard input, asked for on a terminal."""
    while True:
        print("> " if sys.stdin.isatty() else "", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line.rstrip("\n")
