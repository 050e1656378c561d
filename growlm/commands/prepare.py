"""`growlm prepare`: text or a dataset becomes token shards, which a config names as its corpus."""

import argparse

from growlm.commands.options import Keys, flag, one, place
from growlm.errors import InputError

OPTIONS = {
    "--source": {
        "action": "append",
        "help": "text, parquet, a folder, tfds:NAME or hf:NAME[@REVISION]; may be repeated",
    },
    "--output": one("DIR", "new folder, or one to go on with", place),
    "--tokenizer": one("PATH", "bytes, a SentencePiece model, a tokenizer.json, a folder with one, or hf:ORG/NAME"),
    "--train_tokenizer": one("KIND", "train a tokenizer: bpe or sentencepiece"),
    "--vocab": one("N", "tokens of the trained tokenizer", int),
    "--eos": one("TOKEN", "token that ends a document, where the tokenizer does not say"),
    "--validation": one("N", "documents to hold out: a share such as 0.005, or a number of them"),
    "--field": one("NAME", "field of a record with the text (default: text)"),
    "--filter": {
        "action": "append",
        "metavar": "FIELD=VALUE",
        "help": "keep records whose field is a value, or with != is not; may be repeated",
    },
    "--split": one("NAME", "split of a dataset (default: train)"),
    "--data_dir": one("DIR", "folder of TFDS datasets"),
    "--errors": one("HOW", "what to do with text that is not UTF-8: strict (default) or replace"),
    "--chat": flag("records are conversations: messages with roles, or a prompt and a response"),
    "--workers": one("N", "processes (default: one a core)", int),
    "--verify": flag("check every byte of --output, and write nothing"),
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command and return the exit code."""
    from growlm.data.documents import Reading
    from growlm.data.filters import Filter
    from growlm.data.prepare import Request, describe, prepare, verify

    if args.output is None:
        raise InputError("prepare needs --output=DIR (see growlm prepare --help)")
    if args.verify:
        print(f"{describe(args.output, verify(args.output))}\n\nverified: {args.output}")
        return 0
    given = {name: value for name, value in vars(args).items() if value is not None}
    filters = tuple(map(Filter.of, args.filter or ()))
    reading = Reading(**{name: given[name] for name in ("field", "errors", "chat") if name in given}, filters=filters)
    named = ("tokenizer", "train_tokenizer", "vocab", "eos", "validation", "split", "data_dir", "workers")
    options = {name: given[name] for name in named if name in given}
    manifest = prepare(Request(tuple(args.source or ()), args.output, reading=reading, **options))
    print(f"{describe(args.output, manifest)}\n\nwritten: {args.output}")
    return 0
