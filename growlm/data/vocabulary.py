"""Training of new tokenizers on the text that they are for."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from growlm.data.chat import without_markers
from growlm.data.documents import Reading, cut
from growlm.data.holdout import Rule, runs
from growlm.data.sources import Part
from growlm.data.tokenizers import EOS_NAMES, JSON, MODEL, load_tokenizer
from growlm.errors import InputError, check_name, import_library, must_be
from growlm.files import write_whole

# More text hardly changes a vocabulary, and both libraries keep their counts in memory.
SAMPLE_BYTES = 2**27
SAMPLED_PARTS = 64
LINE_BYTES = 8192  # SentencePiece silently drops longer lines than it is told
BYTE_VALUES = 256


def train_tokenizer(kind: str, vocab: int, texts: Iterable[str], folder: Path) -> None:
    """Trains a tokenizer and saves it for `load_tokenizer(folder)`.

    Args:
      kind: "bpe", byte-level BPE as GPT-2's, a tokenizer.json; or "sentencepiece", BPE with byte fallback and split
        digits, as Llama's, a tokenizer.model.
      vocab: number of tokens, EOS included.
      texts: the text to train on.
      folder: an existing folder.

    Raises:
      InputError: an unknown kind; more tokens than the texts give, or no more than there are bytes.
    """
    check_name("--train_tokenizer", kind, TRAINERS)
    if vocab <= BYTE_VALUES:
        raise must_be("--vocab", f"> {BYTE_VALUES}, one for each byte and EOS", vocab)
    name, train = TRAINERS[kind]
    write_whole(folder / name, train(vocab, texts))
    load_tokenizer(folder / name).save(folder)


def sample(parts: Sequence[Part], reading: Reading, rule: Rule) -> Iterator[str]:
    """About SAMPLE_BYTES of the training text, from evenly spread parts."""
    step = max(1, -(-len(parts) // SAMPLED_PARTS))
    chosen = parts[::step]
    for part in chosen:
        left = SAMPLE_BYTES // len(chosen)
        for text in _training_text(part, reading, rule):
            yield text
            left -= len(text)
            if left <= 0:
                break


def _training_text(part: Part, reading: Reading, rule: Rule) -> Iterator[str]:
    texts = (run for document in part.documents(reading) for run in runs(document, rule))
    pieces = itertools.chain.from_iterable(pieces for split, pieces in texts if split == "train")
    return map(without_markers, pieces) if reading.chat else pieces


def _byte_level_bpe(vocab: int, texts: Iterable[str]) -> bytes:
    library = import_library("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[EOS_NAMES[1]],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab:
        raise InputError(f"--vocab={vocab} is more than this text gives: it has {tokenizer.get_vocab_size()} tokens")
    return tokenizer.to_str().encode()


def _sentencepiece(vocab: int, texts: Iterable[str]) -> bytes:
    library = import_library("sentencepiece")
    lines = (piece for text in texts for line in text.split("\n") if line.strip() for piece in cut(line, LINE_BYTES))
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            max_sentence_length=LINE_BYTES,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]  # after the place in its source
        raise InputError(f"--vocab={vocab} does not fit this text: {reason}") from None
    return model.getvalue()


TRAINERS: dict[str, tuple[str, Callable[[int, Iterable[str]], bytes]]] = {
    "bpe": (JSON, _byte_level_bpe),
    "sentencepiece": (MODEL, _sentencepiece),
}
