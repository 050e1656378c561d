"""Text in, batches out: corpora with a held-out split, as bytes or as token shards, and batches by example number."""

from growlm.data.batches import batches, validation_batches
from growlm.data.corpus import Corpus, load_corpus, tokenizer_of
from growlm.data.mixture import Mixture, first_corpus, load_mixture, read_sources
from growlm.data.prepare import Request, prepare, verify
from growlm.data.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "Corpus",
    "Mixture",
    "Request",
    "Tokenizer",
    "batches",
    "first_corpus",
    "load_corpus",
    "load_mixture",
    "load_tokenizer",
    "prepare",
    "read_sources",
    "tokenizer_of",
    "validation_batches",
    "verify",
]
