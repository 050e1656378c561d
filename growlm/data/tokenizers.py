"""Tokenizers: bytes, SentencePiece models, and the tokenizer.json of the `tokenizers` library, behind one interface.

The kind of a file is read off its content, as SentencePiece models go by many names. No text ever becomes a special
token: a document with '</s>' or '<|endoftext|>' in it must not end there.
"""

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from growlm.buckets import WEIGHTS, here
from growlm.checked import check_text, parse_json, read_whole
from growlm.data.expansion import check_json, check_model, normalises_tokens, searches
from growlm.errors import InputError, import_library, in_one_line, must_be
from growlm.files import write_json, write_whole
from growlm.hub import local_folder, pinned

BYTE_TOKENIZER = "bytes"
JSON, MODEL = "tokenizer.json", "tokenizer.model"
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # a byte-level BPE in two files, as GPT-2 was published
SETTINGS = "tokenizer_config.json"

# Files beside a tokenizer that may name its special tokens, as text or as a number, in order of precedence.
SETTINGS_FILES = (SETTINGS, "special_tokens_map.json", "generation_config.json", "config.json")
EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>")

# How long the library `tokenizers` may take: the regular expressions of a file have no bound but half a second for each
# character. It has a minute and, where there is more text, the time of a hundredth of what known ones do a second.
SECONDS, BYTES_A_SECOND = 60.0, 10_000

Ids = list[int]
_Run = Callable[[Callable[[], Any], int, str], Any]  # of work, its size and the unit of that


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to tokens and back.

    Attributes:
      name: the source it was loaded from.
      vocab: one more than the largest token.
      eos: the token after every document.
      bos: the token before a text, for models that were trained with one.
      fingerprint: SHA-256 (hex) of its files, eos and bos.
      files: content of its files by the names under which `save` writes them; none for bytes.
      settings: content of tokenizer_config.json, which `save` writes too.
      encode_all: texts -> a list of tokens for each. No special token is added or made from the text.
      decode: tokens -> text; special tokens are left out.
      number: the token of a text that is one, such as a special token; None for another text.
    """

    name: str
    vocab: int
    eos: int
    bos: int | None
    fingerprint: str
    files: dict[str, bytes]
    settings: dict[str, Any]
    encode_all: Callable[[Sequence[str]], list[Ids]]
    decode: Callable[[Sequence[int]], str]
    number: Callable[[str], int | None]

    def encode(self, text: str) -> Ids:
        """The tokens of one text, with no special token added. Raises InputError for text that has no encoding."""
        return self.encode_all([text])[0]

    def save(self, folder: Path) -> None:
        """Writes the files from which `load_tokenizer(folder)` loads this tokenizer, with its eos and bos."""
        for name, content in self.files.items():
            write_whole(folder / name, content)
        write_json(folder / SETTINGS, self.settings)


@dataclass(frozen=True)
class _Library:
    """A tokenizer of one of the libraries."""

    vocab: int
    token: Callable[[int], str | None]
    number: Callable[[str], int | None]
    eos: int | None  # None where the file itself does not say it
    bos: int | None
    encode_all: Callable[[Sequence[str]], list[Ids]]
    decode: Callable[[Sequence[int]], str]


def load_tokenizer(source: str | Path, eos: str | None = None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      source: one of
        - "bytes": the 256 bytes of UTF-8; EOS is byte 0, so that text with a NUL byte is refused.
        - a SentencePiece model, by any name.
        - a tokenizer.json of the `tokenizers` library, by any name.
        - a folder that holds one of these, such as a Hugging Face model or a corpus of `growlm prepare`, or GPT-2's
          vocab.json and merges.txt (encoder.json and vocab.bpe).
        - hf:ORG/NAME, such a folder on the hub.
      eos: the token that ends a document, such as "</s>". By default the one that the files beside it name
        (tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json), then the model's own,
        then the first of EOS_NAMES that it has.

    Raises:
      InputError: the source is missing or no tokenizer, it has no token `eos`, no token is known to be EOS, or the
        extra `data` is not installed.
    """
    place = here(local_folder(source, weights=False), WEIGHTS)
    source = pinned(place) or str(source)
    if source == BYTE_TOKENIZER or _is_byte_folder(place):
        return _bytes(source, eos)
    files = {name: _read(path) for name, path in _find(place).items()}
    library = _READERS[next(iter(files))](source, files)
    folder = place if place.is_dir() else place.parent
    named = _special_tokens(folder)
    end = _token(library, source, eos) if eos else _special("eos", library, named, EOS_NAMES)
    if end is None:
        names = ", ".join(EOS_NAMES)
        raise InputError(f"tokenizer {source} names no token that ends a document and has none of {names}: --eos=TOKEN")
    start = _special("bos", library, named, BOS_NAMES)
    settings = {"eos_token": library.token(end), "bos_token": None if start is None else library.token(start)}
    return Tokenizer(
        name=source,
        vocab=library.vocab,
        eos=end,
        bos=start,
        fingerprint=_fingerprint(files, end, start),
        files=files,
        settings=settings,
        encode_all=library.encode_all,
        decode=library.decode,
        number=library.number,
    )


def _is_byte_folder(folder: Path) -> bool:
    return folder.is_dir() and _json(folder / SETTINGS).get("tokenizer_class") == BYTE_TOKENIZER


def _bytes(name: str, eos: str | None) -> Tokenizer:
    """Bytes of UTF-8 as tokens; a NUL byte would end the document."""
    if eos is not None:
        raise InputError(f"--eos must be left out with the tokenizer bytes, whose EOS is byte 0, got {eos!r}")

    def encode_all(texts: Sequence[str]) -> list[Ids]:
        if wrong := next((text for text in texts if "\0" in text), None):
            position = len(wrong[: wrong.index("\0")].encode())
            raise InputError(f"text for the tokenizer bytes must have no NUL, got one at position {position}")
        return [list(text.encode()) for text in texts]

    return Tokenizer(
        name=name,
        vocab=256,
        eos=0,
        bos=None,
        fingerprint=hashlib.sha256(BYTE_TOKENIZER.encode()).hexdigest(),
        files={},
        settings={"tokenizer_class": BYTE_TOKENIZER},
        encode_all=encode_all,
        decode=lambda ids: bytes(id for id in ids if id).decode(errors="replace"),
        number=lambda text: None,
    )


def _find(source: Path) -> dict[str, Path]:
    """The files of a tokenizer, by the names under which `save` writes them."""
    if source.is_file():
        return {_kind(source): source}
    if not source.is_dir():
        raise must_be("tokenizer", "'bytes', a SentencePiece model, a tokenizer.json or a folder", str(source))
    for name in (JSON, MODEL):
        if (source / name).is_file():
            return {name: source / name}
    for pair in ((VOCABULARY, MERGES), ("encoder.json", "vocab.bpe")):
        if all((source / name).is_file() for name in pair):
            return dict(zip((VOCABULARY, MERGES), (source / name for name in pair), strict=True))
    others = sorted({*source.glob("*.model"), *source.glob("*tokenizer.json"), *source.glob("tokenizer.default")})
    if len(others) != 1:
        names = ", ".join(path.name for path in others) or "none"
        raise InputError(f"folder {source} must hold one tokenizer, such as {JSON} or {MODEL}, got {names}")
    return {_kind(others[0]): others[0]}


def _kind(path: Path) -> str:
    """The kind of a file: JSON begins with a brace, the protocol buffer of SentencePiece does not."""
    return JSON if _read(path)[:256].lstrip()[:1] == b"{" else MODEL


def _sentencepiece(source: str, files: dict[str, bytes]) -> _Library:
    """SentencePiece's own model; its control symbols are never made from text."""
    library = import_library("sentencepiece")
    try:
        model = library.SentencePieceProcessor(model_proto=files[MODEL])
    except (RuntimeError, ValueError):  # ValueError: its message is no UTF-8
        raise InputError(f"{source} must be a SentencePiece model or a tokenizer.json") from None
    check_model(files[MODEL], source)

    def number(token: str) -> int | None:
        id = model.piece_to_id(token)
        return id if 0 <= id < model.vocab_size() and model.id_to_piece(id) == token else None

    return _Library(
        vocab=model.vocab_size(),
        token=model.id_to_piece,
        number=number,
        eos=model.eos_id() if model.eos_id() >= 0 else None,
        bos=model.bos_id() if model.bos_id() >= 0 else None,
        encode_all=lambda texts: [model.encode(text) for text in texts],  # a list at once would use every core
        decode=lambda ids: model.decode([int(id) for id in ids]),
    )


def _fast(source: str, files: dict[str, bytes]) -> _Library:
    """A tokenizer.json."""
    library = import_library("tokenizers")
    whole = check_json(files[JSON], source)
    if normalises_tokens(whole) and searches(whole, "normalizer"):
        _try_elsewhere(files[JSON], source)
    encode = partial(_in_time, source) if searches(whole, "normalizer", "pre_tokenizer") else _at_once
    decode = partial(_in_time, source) if searches(whole, "decoder") else _at_once
    with failing(f"{source} must be a tokenizer.json"):
        return _of_library(library.Tokenizer.from_str(files[JSON].decode()), source, encode, decode)


def _try_elsewhere(content: bytes, source: str) -> None:
    """Reads a file in a process that can be ended: the library keeps the interpreter to itself while it reads."""
    trial = "import sys, tokenizers; tokenizers.Tokenizer.from_str(sys.stdin.read())"
    command = [sys.executable, "-P", "-X", "utf8", "-c", trial]
    try:
        subprocess.run(command, input=content, timeout=SECONDS, capture_output=True)
    except subprocess.TimeoutExpired:
        raise _slow(source, "be read", SECONDS) from None


def _two_files(source: str, files: dict[str, bytes]) -> _Library:
    """A byte-level BPE from its vocabulary and its merges."""
    library = import_library("tokenizers")
    try:
        vocabulary = parse_json(files[VOCABULARY])
        lines = [line for line in files[MERGES].decode().splitlines() if line and not line.startswith("#version")]
        model = library.models.BPE(vocabulary, [tuple(line.split(" ")) for line in lines])
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{source} must be a byte-level BPE, got {in_one_line(error)}") from None
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in (*EOS_NAMES, *BOS_NAMES) if token in vocabulary])
    return _of_library(tokenizer, source, _at_once, _at_once)


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Says in a line what the library `tokenizers` raises: plain Exceptions, and panics, which are not even these."""
    try:
        yield
    except BaseException as error:
        if type(error) in (Exception, UnicodeDecodeError, OverflowError) or type(error).__name__ == "PanicException":
            raise InputError(f"{what}, got {in_one_line(error)}") from None
        raise


def _of_library(tokenizer: Any, source: str, in_encoding: _Run, in_decoding: _Run) -> _Library:
    """The two say how its work of a size is run: what searches has a limit of time."""
    tokenizer.encode_special_tokens = True  # as plain text
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode_all(texts: Sequence[str]) -> list[Ids]:
        def encoded() -> list[Ids]:
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

        with failing(f"tokenizer {source} must have tokens for any text"):
            return in_encoding(encoded, sum(map(len, texts)), "characters")

    def decode(ids: Sequence[int]) -> str:
        numbers = [int(id) for id in ids]

        def decoded() -> str:  # as a batch: the library keeps the interpreter to itself while it decodes a single text
            return tokenizer.decode_batch([numbers], skip_special_tokens=True)[0]

        with failing(f"tokenizer {source} must have a text for any tokens"):
            return in_decoding(decoded, len(numbers), "tokens")

    return _Library(
        vocab=max(tokenizer.get_vocab().values(), default=-1) + 1,
        token=tokenizer.id_to_token,
        number=tokenizer.token_to_id,
        eos=None,
        bos=None,
        encode_all=encode_all,
        decode=decode,
    )


def _at_once(work: Callable[[], Any], size: int, unit: str) -> Any:
    return work()


def _in_time(source: str, work: Callable[[], Any], size: int, unit: str) -> Any:
    """What `work` returns of `size` characters or tokens. Raises InputError where it takes too long.

    It is done in a thread of its own, which cannot be ended, but need not be waited for and ends with the process.
    """
    future, seconds = Future(), SECONDS + size / BYTES_A_SECOND

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # the library's panics are not narrower
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise _slow(source, f"be done with {size:,} {unit}", seconds) from None


def _slow(source: str, what: str, seconds: float) -> InputError:
    return InputError(f"tokenizer {source} must {what} within {seconds:.0f} s, its regular expressions take longer")


_READERS = {MODEL: _sentencepiece, JSON: _fast, VOCABULARY: _two_files}


def _special_tokens(folder: Path) -> dict[str, str | int | None]:
    """ "eos" and "bos" as text or number, where the files of a folder name them; None: it has none."""
    contents = [_json(folder / name) for name in SETTINGS_FILES]
    named = {"bos": None} if "bos_token" in contents[0] else {}  # null there is a decision: a Qwen has no BOS, say
    for key in ("eos", "bos"):
        values = [content.get(f"{key}_token", content.get(f"{key}_token_id")) for content in contents]
        value = next((value for value in values if value not in (None, [])), None)
        if value is not None:
            value = value[0] if isinstance(value, list) else value  # a chat model may have several
            named[key] = value.get("content") if isinstance(value, dict) else value
    return named


def _special(key: str, library: _Library, named: dict[str, str | int | None], names: Sequence[str]) -> int | None:
    """A special token: as named beside the file, else in the file, else the first of `names` that it has."""
    if (value := named.get(key)) is not None:
        if not isinstance(value, str) and type(value) is not int:
            raise must_be(f"the {key} that a file beside the tokenizer names", "a token's text or number", value)
        number = library.number(value) if isinstance(value, str) else value
        if number is None or not 0 <= number < library.vocab:
            raise InputError(f"the tokenizer lacks the {key} {value!r} that a file beside it names: --eos=TOKEN")
        return number
    if key == "bos" and key in named:
        return None
    number = library.eos if key == "eos" else library.bos
    return number if number is not None else next((n for n in map(library.number, names) if n is not None), None)


def _token(library: _Library, source: str | Path, token: str) -> int:
    number = library.number(token)
    if number is None:
        raise must_be("--eos", f"one of the {library.vocab} tokens of {source}", token)
    return number


def _fingerprint(files: dict[str, bytes], eos: int, bos: int | None) -> str:
    parts = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return hashlib.sha256(json.dumps([parts, eos, bos], sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return read_whole(path, "a tokenizer's file")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _json(path: Path) -> dict[str, Any]:
    """The object in a file that may be missing."""
    if not path.is_file():
        return {}
    try:
        check_text(content := parse_json(_read(path)))
    except ValueError as error:
        raise InputError(f"{path} must be JSON, got {error}") from None
    return content if isinstance(content, dict) else {}
