"""Perplexity of text by token, by byte and by word."""

import math
import re
from collections.abc import Sequence
from typing import Any

from growlm.errors import InputError
from growlm.evaluation.score import LanguageModel, score, windows


def perplexity(model: LanguageModel, texts: Sequence[str], batch: int | None = None) -> dict[str, Any]:
    """How well a model predicts texts, each on its own, in disjoint windows after the model's prefix.

    Args:
      model: what is evaluated.
      texts: documents, taken as they are.
      batch: rows of a batch.

    Returns:
      log_likelihood (nats), tokens, bytes (of UTF-8) and words (parted by white space, counted as lm-evaluation-harness
      does: one more than there are gaps); perplexity by each of the three, exp(-log_likelihood / count); bits_per_byte.

    Raises:
      InputError: there is no text.
    """
    encoded = model.encode_all(texts, add_bos=False)
    counts = {
        "token": sum(map(len, encoded)),
        "byte": sum(len(text.encode()) for text in texts),
        "word": sum(len(re.split(r"\s+", text)) for text in texts),
    }
    if not counts["token"]:
        raise InputError("there is no text to take the perplexity of: allowed are texts of at least one token")
    found = [windows([model.prefix], tokens, model.length) for tokens in encoded]
    total = sum(each.log_likelihood for each in score(model, found, batch, "perplexity"))
    per = {f"{unit}_perplexity": _exp(-total / count) for unit, count in counts.items()}
    bits = {"bits_per_byte": -total / counts["byte"] / math.log(2)}
    return per | bits | {"log_likelihood": total} | {f"{unit}s": count for unit, count in counts.items()}


def _exp(x: float) -> float:
    """Infinity where it is too large: a word has many bytes, and a fresh model may find each unlikely."""
    return math.exp(x) if x < 709 else math.inf
