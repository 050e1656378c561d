"""Instruction tuning: a grown model and one from scratch, tuned on the same conversations (Table 2 of the paper).

    growlm sweep --config=experiments/quickstart.py --workdir=runs/quickstart      # what is tuned
    python experiments/instruct.py runs/talks.jsonl
    growlm prepare --source=runs/talks.jsonl --chat --tokenizer=bytes --output=runs/talks
    growlm sweep --config=experiments/instruct.py:cpu:runs/quickstart --workdir=runs/instruct
    growlm sample --checkpoint=runs/instruct/grown --prompt="What are the parameters of textwrap.wrap?"

`:cpu:SWEEP` tunes the runs `grown` and `scratch` of a sweep, and `fresh`, a model of that shape that has learned
nothing before. The loss, and the validation, are of the answers alone. The conversations are questions about the
functions of Python's standard library: which parameters one has, and what it does, by its docstring. `:cpu` alone, and
`:tiny`, which takes seconds, have `fresh` alone.

Cost: 1,000,000 tokens for each of the three runs of `:cpu`; ESTIMATED and not measured, 3 minutes each on two cores.

What is expected: that tuning keeps what growing gained, as in the paper, where the average of seven accuracies at 3B is
54.36 from scratch and 55.66 grown before tuning, 55.80 and 57.34 after; and that fresh learns the form of an answer and
little else.

Result: none yet. `:tiny` is run by `tests/test_answers.py`.
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from growlm import read_config
from growlm.errors import check_name
from growlm.models import plain


class Budget(NamedTuple):
    """How much is trained: `tokens`, in examples of `length`; `held_out` batches of validation."""

    tokens: int
    length: int
    batch: int
    peak_lr: float
    held_out: int


BUDGETS = {"cpu": Budget(1_000_000, 128, 8, 1e-3, 16), "tiny": Budget(4_000, 64, 4, 4e-3, 2)}
MODEL = {"layers": 2, "embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}


def get_config(variant: str = "tiny") -> ConfigDict:
    name, _, folder = variant.partition(":")
    check_name("variant", name, BUDGETS)
    budget = BUDGETS[name]
    bases = {run: f"{folder}/{run}" for run in ("grown", "scratch")} if folder else {}
    schedule = {"kind": "cosine", "peak_lr": budget.peak_lr, "warmup_tokens": budget.tokens // 20}

    def tuned(base: str | None) -> dict:
        model = plain(read_config(bases["grown"])) if bases else MODEL
        stage = {"model": model, "tokens": budget.tokens, "batch": budget.batch, "length": budget.length}
        stage |= {"schedule": schedule, "objective": {"kind": "answers"}}
        return {"stages": (stage | ({"init_from": base} if base else {}),)}

    config = ConfigDict()
    config.title = "Instruction tuning: grown, from scratch, and of nothing"
    config.corpus = "runs/talks"
    config.remat = "full"
    config.evaluation = {"every_tokens": budget.tokens // 10, "batches": budget.held_out}
    config.checkpoint = {"every_tokens": budget.tokens // 2, "max_to_keep": 1}
    config.runs = {run: tuned(base) for run, base in (bases | {"fresh": None}).items()}
    config.baseline = "scratch" if bases else "fresh"
    config.grown = ("grown",) if bases else ()
    config.controls = {"fresh": "a model that has learned nothing before it is tuned"} if bases else {}
    return config


def talks() -> Iterator[dict[str, str]]:
    """Questions and answers about the functions of the standard library: parameters, and docstrings' first lines."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")):
        for function in ast.parse(path.read_text(encoding="utf-8", errors="replace")).body:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            name = f"{path.stem}.{function.name}"
            parameters = f"({ast.unparse(function.args)})"
            yield {"prompt": f"What are the parameters of {name}?", "response": parameters}
            if said := (ast.get_docstring(function) or "").partition("\n")[0].strip():
                yield {"prompt": f"What does {name} do?", "response": said}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(json.dumps(talk) + "\n" for talk in talks()), encoding="utf-8")
