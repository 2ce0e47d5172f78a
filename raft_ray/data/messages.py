"""The chat of a record: messages with role and content, every other field of them refused rather than dropped.

ShareGPT's `from` and `value` are read as well. Content is text, or a list of text parts, which are joined. Whether a
chat template takes a role is for whoever has the tokenizer to find out (`raft_ray.preflight`). Knows nothing about
files or about which fields a record has besides.
"""

from __future__ import annotations

from typing import Any

from raft_ray.data.normalise import visible
from raft_ray.json_files import Unusable

ROLES = ("system", "developer", "user", "assistant")
_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}

METADATA = frozenset(
    {"annotations", "created", "created_at", "date", "id", "lang", "language", "message_id", "model", "timestamp"}
)
"""Fields of a message that may hold a text or a number: they say nothing of what is trained on."""

_TRAINED = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_FIXES = {
    "tool_calls": "tool calls are not trained on; leave the row out",
    "function_call": "tool calls are not trained on; leave the row out",
    "reasoning_content": "reasoning is not trained on; remove the field",
    "reasoning": "reasoning is not trained on; remove the field",
    "name": "chat templates know no names; remove the field, or write the name into the content",
}


def read_chat(value: Any, field: str) -> list[dict[str, str]]:
    """The messages in `value`, the field `field` of a record: `role` and `content` each. Raises `Unusable`, naming
    message and field, for what cannot be honoured: other roles than `ROLES`, parts that are no text, and fields beside
    role and content that hold anything but `METADATA`. `weight` may be 0 (`train` false) where nothing is trained,
    before the last message, and 1 (true) anywhere."""
    if not isinstance(value, list) or not value:
        raise Unusable(f"field '{field}' is not a list of messages")
    return [_message(message, number, number == len(value)) for number, message in enumerate(value, start=1)]


def checked(value: Any, what: str) -> str:
    """`value` if it is a text with anything to see in it. Raises `Unusable`, beginning with `what`."""
    if not isinstance(value, str):
        raise Unusable(f"{what} is not text ({type(value).__name__}){_how_to_convert(value)}")
    if not writable(value, what).strip():
        raise Unusable(f"{what} is empty")
    if not visible(value):
        raise Unusable(f"{what} has nothing but control and zero-width characters")
    if "\0" in value:
        raise Unusable(f"{what} has a NUL character; remove it")
    return value


def writable(text: str, what: str) -> str:
    """`text` if UTF-8 can write it, as tokenizers and files do. Raises `Unusable`, beginning with `what`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable(f"{what} has half of a surrogate pair, which is no character") from None
    return text


def _message(message: Any, number: int, is_last: bool) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Unusable(f"message {number} is not an object with role and content")
    is_sharegpt = "role" not in message and {"from", "value"} <= message.keys()
    role_field, content_field = ("from", "value") if is_sharegpt else ("role", "content")
    for name, value in message.items():
        if name in (role_field, content_field) or value in (None, "", [], {}):
            continue
        if name in ("weight", "train"):
            trained = _TRAINED.get(str(value).strip().lower())
            if trained or (trained is False and not is_last):
                continue
            raise Unusable(
                f"message {number} has {name} {value!r}; an answer counts whole: leave the row or the field out"
            )
        if value is False or (name in METADATA and isinstance(value, str | int | float)):
            continue
        raise Unusable(
            f"message {number} has a field '{name}': {_FIXES.get(name, 'nothing reads it; remove the field')}"
        )
    role = message.get(role_field)
    if is_sharegpt and isinstance(role, str):
        role = _SHAREGPT.get(role, role)
    if role not in ROLES:
        raise Unusable(f"message {number} has role {role!r}; it must be one of {', '.join(ROLES)}")
    content = message.get(content_field)
    if isinstance(content, list) and content:
        content = "".join(_part(part, number, place) for place, part in enumerate(content, start=1))
    return {"role": role, "content": checked(content, f"content of message {number}")}


def _part(part: Any, number: int, place: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    where = f"part {place} of message {number}"
    if kind != "text":
        raise Unusable(f"{where} is of type {kind!r}; only text parts are read")
    for name, value in part.items():
        if name not in ("type", "text") and value not in (None, "", [], {}):
            raise Unusable(f"{where} has a field '{name}': nothing reads it; remove the field")
    if not isinstance(part.get("text"), str):
        raise Unusable(f"{where} has no text")
    return str(part["text"])


def _how_to_convert(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return '; write it in quotes, such as "4"'
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; a chat belongs in data.columns.messages"
    if isinstance(value, list):
        return "; it must be one text"
    return ""
