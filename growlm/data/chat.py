"""Conversations as text: JSON records in one fixed form, in which tokens that no text can become mark who speaks.

    <system>text<user>text<assistant>answer<end><user>text<assistant>answer<end>EOS

A role's marker stands before its text, nothing else between them, and `end` after an answer alone. So which tokens are
answers follows from the tokens of a window: those after an assistant's marker, up to and with `end`; and where a window
begins within an answer, the first marker in it is `end`.

In a `str` a marker is a lone surrogate, which no UTF-8 holds, and which `surrogateescape` makes of a byte that is in no
UTF-8 either. What token it is says `growlm.data.markers`.
"""

import re
from collections.abc import Sequence
from typing import Any

from growlm.errors import InputError, must_be

ROLES = ("system", "user", "assistant")
BYTES = (0xFC, 0xFD, 0xFE, 0xFF)
MARKERS = SYSTEM, USER, ASSISTANT, END = tuple(chr(0xDC00 + byte) for byte in BYTES)
AT_MARKERS = re.compile(f"([{''.join(MARKERS)}])")
_MARKER = dict(zip(ROLES, MARKERS, strict=False))


def without_markers(text: str) -> str:
    """The text between markers."""
    return AT_MARKERS.sub("", text)


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


def render(messages: Sequence[tuple[str, str]]) -> str:
    """The text of a conversation, with markers. After ASSISTANT a model is to answer."""
    return "".join(_MARKER[role] + content + END * (role == "assistant") for role, content in messages)
