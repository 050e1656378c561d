"""Conversations as text: JSON records in one fixed form, in which tokens that no text can become mark who speaks.

    <system>text<user>text<assistant>answer<end><user>text<assistant>answer<end>EOS

A role's marker stands before its text, nothing else between them, and `end` after an answer alone. So which tokens are
answers follows from the tokens of a window: those after an assistant's marker, up to and with `end`; and where a window
begins within an answer, the first marker in it is `end`.

In a `str` a marker is a lone surrogate, which no UTF-8 holds, and which `surrogateescape` makes of a byte that is in no
UTF-8 either. With the tokenizer bytes it is that byte; with another one a special token that it has, or else a token
after its last.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

from growlm.data.tokenizers import BYTE_TOKENIZER, Ids, Tokenizer
from growlm.errors import InputError, must_be

ROLES = ("system", "user", "assistant")
_BYTES = (0xFC, 0xFD, 0xFE, 0xFF)
MARKERS = SYSTEM, USER, ASSISTANT, END = tuple(chr(0xDC00 + byte) for byte in _BYTES)
_MARKER = dict(zip(ROLES, MARKERS, strict=False))
_SPLIT = re.compile(f"([{''.join(MARKERS)}])")

# Special tokens for system, user, assistant and the end of an answer; the first of these that a tokenizer has.
KNOWN = (
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),  # Phi-3
    (*(f"<|reserved_special_token_{number}|>" for number in range(3)), "<|eot_id|>"),  # Llama 3
)


@dataclasses.dataclass(frozen=True)
class Markers:
    """The tokens that mark who speaks, and where an answer ends."""

    system: int
    user: int
    assistant: int
    end: int

    @property
    def ids(self) -> tuple[int, int, int, int]:
        """All four."""
        return self.system, self.user, self.assistant, self.end


def markers_of(tokenizer: Tokenizer) -> Markers:
    """The markers of a tokenizer: a function of it alone."""
    if tokenizer.settings.get("tokenizer_class") == BYTE_TOKENIZER:
        return Markers(*_BYTES)
    for names in KNOWN:
        found = [tokenizer.number(name) for name in names]
        if None not in found:
            return Markers(*found)
    return Markers(*range(tokenizer.vocab, tokenizer.vocab + 4))


def with_markers(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of texts with markers in them, which it makes of tokens too. Its vocabulary has them."""
    ids = markers_of(tokenizer).ids
    number = dict(zip(MARKERS, ids, strict=True))
    marker = dict(zip(ids, MARKERS, strict=True))

    def encode_all(texts: Sequence[str]) -> list[Ids]:
        parts = [[part for part in _SPLIT.split(text) if part] for text in texts]
        plain = iter(tokenizer.encode_all([part for each in parts for part in each if part not in number]))
        return [[id for part in each for id in ([number[part]] if part in number else next(plain))] for each in parts]

    def decode(tokens: Sequence[int]) -> str:
        runs = itertools.groupby(tokens, lambda token: token in marker)
        return "".join(
            "".join(marker[id] for id in run) if marks else tokenizer.decode(list(run)) for marks, run in runs
        )

    vocab = max(tokenizer.vocab, max(ids) + 1)
    return dataclasses.replace(tokenizer, vocab=vocab, encode_all=encode_all, decode=decode)


def without_markers(text: str) -> str:
    """The text between markers."""
    return _SPLIT.sub("", text)


def messages_of(record: Any, place: str) -> list[tuple[str, str]]:
    """(role, content) of every message of a record: {"messages": [{"role": ..., "content": ...}]}, or a prompt and a
    response.

    Raises:
      InputError: it is of neither form, a role is none of `ROLES`, a content is no text or empty, none is an answer.
    """
    fields = record if isinstance(record, dict) else {}
    messages = fields.get("messages")
    if messages is None and {"prompt", "response"} <= fields.keys():
        pair = ("user", "prompt"), ("assistant", "response")
        messages = [{"role": role, "content": fields[name]} for role, name in pair]
    if not isinstance(messages, list):
        names = ", ".join(map(str, fields)) or "none"
        raise InputError(f"{place} must have a list of messages, or a prompt and a response, its fields are {names}")
    found = []
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if role not in ROLES:
            raise must_be(f"{place}: the role of message {number}", " or ".join(ROLES), role)
        if not isinstance(content, str) or not content.strip():
            raise must_be(f"{place}: the content of message {number}", "a text that is not empty", content)
        found.append((role, content))
    if not any(role == "assistant" for role, _ in found):
        raise InputError(f"{place} must have an answer, a message of the role assistant, it has none")
    return found


def render(messages: Sequence[tuple[str, str]], answer: bool = False) -> str:
    """The text of a conversation, with markers. If `answer`, the model is to go on with one."""
    said = "".join(_MARKER[role] + content + END * (role == "assistant") for role, content in messages)
    return said + ASSISTANT * answer
