"""New tokenizers, made from the text that they are for."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from growlm.data.documents import Reading, cut
from growlm.data.holdout import Rule, runs
from growlm.data.sources import Part
from growlm.data.tokenizers import EOS_NAMES, JSON, MODEL, import_library, load_tokenizer
from growlm.errors import InputError, unknown
from growlm.files import write_whole

# More text hardly changes a vocabulary, and both libraries hold what they count in memory.
SAMPLE = 2**27
SAMPLED_PARTS = 64
LINE = 8192  # SentencePiece leaves out longer lines than it is told, without a word
BYTES = 256


def train_tokenizer(kind: str, vocab: int, texts: Iterable[str], folder: Path) -> None:
    """Makes a tokenizer and saves it as `load_tokenizer(folder)` reads it.

    Args:
      kind: "bpe", byte-level BPE as GPT-2's, a tokenizer.json; or "sentencepiece", BPE with bytes for what is not in
        the vocabulary and digits apart, as Llama's, a tokenizer.model.
      vocab: number of its tokens, EOS included.
      texts: what it is made from.
      folder: where it goes; there is none of it until it is done.

    Raises:
      InputError: another kind, more tokens than the texts give, fewer than there are bytes.
    """
    if kind not in TRAINERS:
        raise unknown("tokenizer to train", kind, TRAINERS)
    if vocab <= BYTES:
        raise InputError(f"--vocab={vocab} is too small: allowed is more than {BYTES}, one for each byte and EOS")
    name, train = TRAINERS[kind]
    write_whole(folder / name, train(vocab, texts))
    load_tokenizer(folder / name).save(folder)


def sample(parts: Sequence[Part], reading: Reading, rule: Rule) -> Iterator[str]:
    """About SAMPLE bytes of the training text, from parts that are spread evenly."""
    step = max(1, -(-len(parts) // SAMPLED_PARTS))
    chosen = parts[::step]
    for part in chosen:
        left = SAMPLE // len(chosen)
        for text in _training_text(part, reading, rule):
            yield text
            left -= len(text)
            if left <= 0:
                break


def _training_text(part: Part, reading: Reading, rule: Rule) -> Iterator[str]:
    found = (run for document in part.documents(reading) for run in runs(document, rule))
    return itertools.chain.from_iterable(pieces for split, pieces in found if split == "train")


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
    lines = (piece for text in texts for line in text.split("\n") if line.strip() for piece in cut(line, LINE))
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            max_sentence_length=LINE,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        said = str(error).rpartition("] ")[2]  # after the place in its source
        raise InputError(f"--vocab={vocab} does not fit this text: {said}") from None
    return model.getvalue()


TRAINERS: dict[str, tuple[str, Callable[[int, Iterable[str]], bytes]]] = {
    "bpe": (JSON, _byte_level_bpe),
    "sentencepiece": (MODEL, _sentencepiece),
}
