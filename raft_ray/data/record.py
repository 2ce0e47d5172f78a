"""From a record to a row: which of its fields hold the chat before the answer, and the answers.

| fields (other names: `data.columns`) | the question | the answer |
|---|---|---|
| `prompt` or `question` | as it stands | `answer`, `output` or `completion` |
| `instruction`, perhaps `input` (Alpaca) | instruction, a blank line and input, without a preamble | the same |
| `messages` or `conversations` (ShareGPT) | the messages before the answer | the last assistant message, or `answer` |

A `system` beside `instruction` or `conversations` is the system message. A list of answers counts as right whole, and
the first of it is the gold answer. Texts are taken as they stand: nothing is stripped, cut or repaired. Knows nothing
about files.
"""

from __future__ import annotations

import json
from typing import Any

from raft_ray.config import ColumnsConfig
from raft_ray.data.messages import checked, read_chat
from raft_ray.data.normalise import keys, occurs
from raft_ray.json_files import Unusable

Chat = list[dict[str, str]]

_CHATS = ("messages", "conversations")
_PROMPTS = ("prompt", "question", "instruction")
_ANSWERS = ("answer", "output", "completion")
_FIELDS_SHOWN = 20


def row_fields(record: dict[str, Any], columns: ColumnsConfig, *, with_choices: bool) -> dict[str, Any]:
    """`messages`, `answer`, `answers`, `choices`, `rewrite` and `fused` of a `Row`. Raises `Unusable`. `with_choices`:
    of a test question; training has no use for them."""
    refined = all(record.get(name) is not None for name in ("fused", "messages", "answer"))
    if refined:
        # A refined file has its own column names, whatever the names in the file that it was made from.
        columns = ColumnsConfig()
    others: list[str] = []
    if chat_field := _first(record, _named(columns.messages, _CHATS)):
        messages, answer = _chat(record, chat_field, columns)
        if refined:
            # An exported chat ends with the fused answer; the gold answer stands beside it.
            answer = _text(record, "answer")
    else:
        messages = _question(record, columns)
        # A file made elsewhere may hold the fused answers alone.
        names = _named(columns.answer, _ANSWERS)
        field = _first(record, (*names, "fused")) or names[0]
        if isinstance(record.get(field), list) and all(isinstance(each, str) for each in record[field]):
            others = _texts(record[field], field)
        answer = others[0] if others else _text(record, field)
    if (value := _listed(record.get(columns.answers))) is not None:
        others += _texts(value, columns.answers)
    return {
        "messages": messages,
        "answer": answer,
        "answers": list(dict.fromkeys([answer, *others])),
        "choices": _choices(record, columns.choices, answer) if with_choices else None,
        "rewrite": None if record.get("accepted") is False else _optional(record, "rewrite"),
        "fused": _optional(record, "fused"),
    }


def prompt_of(record: dict[str, Any], columns: ColumnsConfig) -> Chat:
    """The chat before the answer, of a record that need not have one. Raises `Unusable`."""
    field = _first(record, _named(columns.messages, _CHATS))
    if field is None:
        return _question(record, columns)
    messages = read_chat(_listed(record[field]), field)
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise Unusable(f"{field} have no user message before the answer")
    return messages


def _question(record: dict[str, Any], columns: ColumnsConfig) -> Chat:
    names = _named(columns.prompt, _PROMPTS)
    field = _first(record, names) or names[0]
    question, before = _text(record, field), []
    is_instruction = field == "instruction"
    if is_instruction and not _is_nothing(record.get("history")):
        raise Unusable("has `history` beside `instruction`, and nothing reads it; write a chat into `messages`")
    given = columns.input or ("input" if is_instruction else "")
    if not _is_nothing(record.get(given)):
        question += f"\n\n{_text(record, given)}"
    if is_instruction and not _is_nothing(record.get("system")):
        before = [{"role": "system", "content": _text(record, "system")}]
    return [*before, {"role": "user", "content": question}]


def _chat(record: dict[str, Any], field: str, columns: ColumnsConfig) -> tuple[Chat, str]:
    """The messages before the answer, and the answer: the last message, or a field beside a chat without one."""
    prompt_field, answer_field = columns.prompt or _PROMPTS[0], columns.answer or _ANSWERS[0]
    for offered in ("tools", "functions"):
        if not _is_nothing(record.get(offered)):
            raise Unusable(f"field '{offered}' offers tools, which are not trained on; leave the row out")
    messages = read_chat(_listed(record[field]), field)
    if field == "conversations" and not _is_nothing(record.get("system")):
        if messages[0]["role"] == "system":
            raise Unusable("has `system` beside a system message in `conversations`; remove one")
        messages.insert(0, {"role": "system", "content": _text(record, "system")})
    if messages[-1]["role"] == "assistant":
        *before, last = messages
        answer = last["content"]
    elif record.get(answer_field) is not None:
        before, answer = messages, _text(record, answer_field)
    else:
        raise Unusable(f"the last of {field} is not an assistant message")
    if not before or before[-1]["role"] != "user":
        raise Unusable(f"{field} have no user message right before the answer")
    ignored = "remove one, or have the field ignored with data.columns"
    if record.get("fused") is None and not _agrees(record.get(answer_field), [answer]):
        raise Unusable(
            f"{field} end with another answer than the one in field '{answer_field}'; {ignored}.answer=NAME, a name "
            "that no row has"
        )
    # Of a longer chat, people note the first question or the last, or the whole chat (TRL).
    prompt = record.get(prompt_field)
    if not _is_chat(prompt, before, messages) and not _agrees(prompt, [each["content"] for each in before]):
        raise Unusable(
            f"{field} do not hold the question in field '{prompt_field}'; {ignored}.prompt=NAME, a name that no row has"
        )
    return before, answer


def _agrees(value: Any, texts: list[str]) -> bool:
    """Whether a field beside a chat holds nothing, contains one of `texts` or is a part of one, such as its result.
    Contained is what `raft_ray.data.normalise` finds: whole words, numbers by value. A number counts as its text."""
    if value in (None, [], {}):
        return True
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    said = str(value).strip()
    if not said or any(said == text.strip() for text in texts):
        return True
    part = keys(said)
    return any(part and whole and (occurs(whole, part) or occurs(part, whole)) for whole in map(keys, texts))


def _is_chat(value: Any, *chats: Chat) -> bool:
    """Whether `value` is one of `chats`, spaces at the ends of its messages left out."""
    try:
        read = read_chat(value, "")
    except Unusable:
        return False
    return any(_stripped(read) == _stripped(chat) for chat in chats)


def _stripped(chat: Chat) -> Chat:
    return [{**message, "content": message["content"].strip()} for message in chat]


def _is_nothing(value: Any) -> bool:
    """Whether a field holds nothing, as itself or written in JSON (`"[]"`)."""
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _listed(value: Any) -> Any:
    """A list that is written in JSON, as CSV files and some Parquet files have it; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _choices(record: dict[str, Any], field: str, answer: str) -> list[str] | None:
    value = _listed(record.get(field))
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 2:
        raise Unusable(f"field '{field}' is not a list of two or more texts")
    choices = _texts(value, field)
    if len(set(choices)) < len(choices):
        raise Unusable(f"field '{field}' names a choice twice")
    if answer not in choices:
        raise Unusable(f"the answer is none of the texts in '{field}'")
    return choices


def _texts(value: Any, field: str) -> list[str]:
    if not isinstance(value, list):
        raise Unusable(f"field '{field}' is not a list of texts")
    return [checked(item, f"item {number} of '{field}'") for number, item in enumerate(value, start=1)]


def _named(column: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    return (column,) if column else usual


def _first(record: dict[str, Any], fields: tuple[str, ...]) -> str | None:
    """The first of `fields` that the record has."""
    return next((field for field in fields if record.get(field) is not None), None)


def _text(record: dict[str, Any], field: str) -> str:
    if record.get(field) is None:
        names = [name for name, value in record.items() if value is not None]
        there = ", ".join(names[:_FIELDS_SHOWN]) + (", ..." if len(names) > _FIELDS_SHOWN else "") or "none"
        raise Unusable(f"field '{field}' is missing (fields there: {there})")
    return checked(record[field], field)


def _optional(record: dict[str, Any], field: str) -> str | None:
    return None if record.get(field) is None else checked(record[field], field)
