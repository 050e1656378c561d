"""How good a model is: benchmarks by lm-evaluation-harness, perplexity, and text that it writes.

model = growlm.evaluation.LanguageModel(config, params, tokenizer, length=1024, prefix=tokenizer.eos)
growlm.evaluation.evaluate(model, ["lambada_openai", "arc_easy"], data_dir=Path("records"))["results"]
growlm.evaluation.perplexity(model, [Path("novel.txt").read_text()])["word_perplexity"]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growlm.evaluation.benchmark import check_tasks, evaluate, paper_average
    from growlm.evaluation.sampling import Sampling, generate
    from growlm.evaluation.score import LanguageModel, perplexity

__all__ = ["LanguageModel", "Sampling", "check_tasks", "evaluate", "generate", "paper_average", "perplexity"]

_MODULES = {"LanguageModel": "score", "Sampling": "sampling", "generate": "sampling", "perplexity": "score"}


def __getattr__(name: str) -> Any:
    """Loads public names at first use: a report reads scores without JAX."""
    if name in __all__:
        return getattr(importlib.import_module(f"growlm.evaluation.{_MODULES.get(name, 'benchmark')}"), name)
    raise AttributeError(f"module 'growlm.evaluation' has no attribute {name!r}")
