"""Text in, batches out: byte corpora with a held-out split, and batches addressed by example number."""

from growlm.data.batches import batches, validation_batches
from growlm.data.corpus import Corpus, load_corpus

__all__ = ["Corpus", "batches", "load_corpus", "validation_batches"]
