"""What each command takes: its options, as argparse has them, and the options that take --NAME.key=value too."""

import argparse
import math
from pathlib import Path
from typing import NamedTuple, NoReturn

from growlm.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse, but for an error that is one line."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")


class Once(argparse.Action):
    """An option that is an error when it is given twice: the second would silently win."""

    def __call__(self, parser, namespace, value, option_string=None):
        """Keeps the value."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: {getattr(namespace, self.dest)} and {value}")
        setattr(namespace, self.dest, value)


_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def _positive(text: str) -> float:
    """A positive number; 1.1B is 1.1e9."""
    unit = _UNITS.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: positive numbers are, such as 7e9 or 7B")
    return value


def _steps(text: str) -> range:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: FIRST:LAST is, such as 10:12")
    return range(int(first), int(last) + 1)


class Options(NamedTuple):
    """The options of a command, by name; and those that take keys, each with a word on them."""

    plain: dict[str, dict]
    keys: dict[str, str] = {}  # noqa: RUF012


_CONFIG = {"action": Once, "required": True, "metavar": "FILE.py[:variant]", "help": "an experiment file"}
_WORKDIR = {"action": Once, "required": True, "type": Path, "help": "the folder of the run or the sweep"}

_CHECKPOINT = "a run's folder, one of grow's, or a Hugging Face checkpoint"


_WATCHING = {
    "--peak_flops": {"action": Once, "type": _positive, "metavar": "N", "help": "FLOP/s of a device, for the MFU"},
    "--profile_steps": {"action": Once, "type": _steps, "metavar": "A:B", "help": "steps to trace, the last too"},
    "--compilation_cache": {"action": Once, "type": Path, "metavar": "DIR", "help": "not in the workdir but here"},
}

_CONFIG_KEYS = {"--config": "sets any key of the config, such as --config.stages[0].schedule.peak=3e-4"}

OPTIONS: dict[str, Options] = {
    "train": Options({"--workdir": _WORKDIR, "--config": _CONFIG} | _WATCHING, _CONFIG_KEYS),
    "sweep": Options(
        {
            "--workdir": _WORKDIR,
            "--config": _CONFIG,
            "--list": {"action": "store_true", "help": "print the runs and their stages, and train nothing"},
            "--run": {"action": Once, "metavar": "NAME", "help": "only this run"},
        }
        | _WATCHING,
        _CONFIG_KEYS,
    ),
    "grow": Options(
        {
            "--source": {"action": Once, "type": Path, "metavar": "DIR", "help": "a run, one of grow's, Hugging Face"},
            "--output": {"action": Once, "type": Path, "metavar": "DIR", "help": "a new folder"},
            "--operator": {"action": Once, "metavar": "NAME", "help": "an operator or a preset; direct by default"},
            "--factor": {"action": Once, "type": int, "metavar": "N", "help": "so many times the layers"},
            "--optimizer_state": {"action": Once, "metavar": "NAME", "help": "reset, map or map_aged"},
            "--step": {"action": Once, "type": int, "metavar": "N", "help": "of the source; its last by default"},
            "--seed": {"action": Once, "type": int, "metavar": "N", "help": "of fresh values; else the source's key"},
            "--no_verify": {"action": "store_true", "help": "write the grown model unchecked"},
            "--dry_run": {"action": "store_true", "help": "print what would be done, and write nothing"},
            "--list": {"action": "store_true", "help": "print the operators and presets"},
        },
        {
            "--target": "sets a size of the grown model, such as --target.embed=1024",
            "--option": "sets an option of the operator, such as --option.order=interleave",
        },
    ),
    "prepare": Options(
        {
            "--source": {"action": "append", "help": "a text file, a folder, tfds:NAME or hf:NAME; may be repeated"},
            "--output": {"action": Once, "type": Path, "metavar": "DIR", "help": "a new folder, or one to go on with"},
            "--tokenizer": {"action": Once, "help": "bytes, a SentencePiece model, a tokenizer.json, or its folder"},
            "--train_tokenizer": {"action": Once, "metavar": "KIND", "help": "make one: bpe or sentencepiece"},
            "--vocab": {"action": Once, "type": int, "metavar": "N", "help": "its number of tokens"},
            "--eos": {
                "action": Once,
                "metavar": "TOKEN",
                "help": "what ends a document, if the tokenizer does not say",
            },
            "--validation": {
                "action": Once,
                "metavar": "N",
                "help": "held out: a share (0.005), or so many documents",
            },
            "--field": {
                "action": Once,
                "metavar": "NAME",
                "help": "of records, the one with the text; text by default",
            },
            "--split": {"action": Once, "metavar": "NAME", "help": "of a dataset by name; train by default"},
            "--data_dir": {"action": Once, "metavar": "DIR", "help": "where TFDS datasets lie"},
            "--errors": {
                "action": Once,
                "metavar": "HOW",
                "help": "text that is not UTF-8: strict (default) or replace",
            },
            "--workers": {"action": Once, "type": int, "metavar": "N", "help": "processes; one a core by default"},
            "--verify": {"action": "store_true", "help": "check every byte of --output, and write nothing"},
        },
    ),
    "convert": Options(
        {
            "--source": {"action": Once, "required": True, "type": Path, "metavar": "DIR", "help": "what there is"},
            "--output": {"action": Once, "type": Path, "metavar": "DIR", "help": "a new folder"},
            "--to": {"action": Once, "metavar": "FORMAT", "help": "huggingface or growlm"},
            "--dtype": {"action": Once, "metavar": "NAME", "help": "of what is exported; as imported by default"},
            "--step": {"action": Once, "type": int, "metavar": "N", "help": "of a run; its last by default"},
            "--describe": {"action": "store_true", "help": "print what the source is, and write nothing"},
        },
    ),
    "report": Options(
        {
            "--workdir": {"action": Once, "type": Path, "metavar": "DIR", "help": "the folder of a run or a sweep"},
            "--runs": {"action": Once, "type": Path, "metavar": "DIR", "help": "a folder of such, as seeds are"},
            "--loss": {"action": Once, "type": _positive, "metavar": "X", "help": "compare at this validation loss"},
        },
    ),
    "keep": Options(
        {
            "--workdir": _WORKDIR,
            "--output": {"action": Once, "required": True, "type": Path, "metavar": "DIR", "help": "a new folder"},
        },
    ),
    "plan": Options(
        {
            "--params": {"action": Once, "required": True, "type": _positive, "help": "of the grown model: 7e9"},
            "--tokens": {"action": Once, "required": True, "type": _positive, "help": "of training it from scratch"},
            "--chip": {"action": Once, "metavar": "NAME", "help": "such as v5e or h100-sxm, for hours and memory"},
            "--count": {"action": Once, "type": int, "metavar": "N", "help": "of chips; 1 by default"},
            "--mfu": {"action": Once, "type": float, "metavar": "X", "help": "share of their peak; 0.4 by default"},
            "--factor": {"action": Once, "type": int, "metavar": "N", "help": "growth factor; 4 by default"},
            "--vocab": {"action": Once, "type": int, "metavar": "N", "help": "tokens known; 32000 by default"},
            "--length": {"action": Once, "type": int, "metavar": "N", "help": "of an example; 2048 by default"},
            "--write": {"action": Once, "type": Path, "metavar": "FILE.py", "help": "the experiment that runs it"},
            "--corpus": {"action": Once, "metavar": "PATH", "help": "what that trains on; stdlib by default"},
        },
    ),
    "fit": Options(
        {
            "--runs": {"action": Once, "required": True, "type": Path, "metavar": "DIR", "help": "one sweep or more"},
            "--law": {"action": Once, "required": True, "metavar": "NAME", "help": "timing, factor or scaling"},
            "--slices": {"action": Once, "type": int, "metavar": "N", "help": "budgets per size; 4 by default"},
        },
    ),
    "evaluate": Options(
        {
            "--checkpoint": {"action": Once, "required": True, "type": Path, "metavar": "DIR", "help": _CHECKPOINT},
            "--tasks": {
                "action": Once,
                "metavar": "A,B",
                "help": "of lm-evaluation-harness; paper: the paper's eight",
            },
            "--perplexity": {"action": Once, "metavar": "FILE,...", "help": "text files to take the perplexity of"},
            "--data_dir": {"action": Once, "type": Path, "metavar": "DIR", "help": "holds TASK.jsonl; else the hub"},
            "--limit": {"action": Once, "type": int, "metavar": "N", "help": "so many documents of a task"},
            "--shots": {"action": Once, "type": int, "metavar": "N", "help": "so many examples before a question"},
            "--batch": {"action": Once, "type": int, "metavar": "N", "help": "rows of a batch"},
            "--output": {"action": Once, "type": Path, "metavar": "DIR", "help": "not in the checkpoint's folder"},
            "--tokenizer": {"action": Once, "metavar": "SOURCE", "help": "not the checkpoint's own"},
            "--step": {"action": Once, "type": int, "metavar": "N", "help": "of a run; its last by default"},
            "--length": {"action": Once, "type": int, "metavar": "N", "help": "tokens read at once"},
            "--dtype": {"action": Once, "metavar": "NAME", "help": "float32 (by default) or bfloat16"},
        },
        {"--mesh": "sets a size of the mesh, such as --mesh.tensor=2"},
    ),
}
