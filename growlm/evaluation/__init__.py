"""How good a model is: benchmarks by lm-evaluation-harness, and perplexity.

model = growlm.evaluation.LanguageModel(config, params, tokenizer, length=1024, prefix=tokenizer.eos)
growlm.evaluation.evaluate(model, ["lambada_openai", "arc_easy"], data_dir=Path("records"))["results"]
growlm.evaluation.perplexity(model, [Path("novel.txt").read_text()])["word_perplexity"]
"""

from growlm.evaluation.benchmark import check_tasks, evaluate, paper_average
from growlm.evaluation.generate import Sampling, generate
from growlm.evaluation.perplexity import perplexity
from growlm.evaluation.score import LanguageModel

__all__ = ["LanguageModel", "Sampling", "check_tasks", "evaluate", "generate", "paper_average", "perplexity"]
