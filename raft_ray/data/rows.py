"""Rows to train and test on: reads every kind of source into `Row`s, and says of each bad row what is wrong with it.

A source is a `.jsonl` or `.parquet` file, a folder of `part-*.parquet` files (a run's `refined/`), any other folder
that `datasets` loads, the name of a Hugging Face data set (`owner/name` or `owner/name:configuration`), or
`domain:NAME`. Texts are taken as they stand: nothing is stripped, cut or repaired.

Knows nothing about models: lengths come from a function that the caller passes. `datasets` and `pyarrow` are
imported inside the functions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from raft_ray.config import DataConfig, OnBadRow
from raft_ray.data.messages import checked, read_chat
from raft_ray.data.normalise import keys, occurs
from raft_ray.data.sources import START, Place, Split, Unusable, records
from raft_ray.errors import DataError
from raft_ray.printable import one_line

CountTokens = Callable[[list[dict[str, str]], str], tuple[int, int]]

_SHOWN = 5
_FIELDS_SHOWN = 20
_REASON = 500
"""Characters of a reason at most: names of fields, which it may quote, can be of any length."""
_CHARACTERS = 64
"""Of a longer text, so many characters for each token allowed are counted first."""
_BAD_IN_MEMORY = 1 << 20


@dataclass(frozen=True)
class Row:
    """One question with its gold answer."""

    index: int
    """0-based position among the good rows."""
    line: int
    """1-based line (JSONL) or row number in the source."""
    messages: list[dict[str, str]]
    """The chat before the answer, `role` and `content` each; the last message is the user's."""
    answer: str
    """The gold answer y; in a file with `prompt` and `fused` alone, the fused answer."""
    answers: list[str]
    """Every answer that counts as right, the gold answer first."""
    choices: list[str] | None = None
    """The choices of a test question, the gold answer among them; none where the row names none."""
    rewrite: str | None = None
    """The accepted rewrite ỹ of a refined file (Eqs. 1-3); none elsewhere, and where the gold answer stays."""
    fused: str | None = None
    """ŷ of a refined file, or of a file made elsewhere with a `fused` field (Eq. 4); none elsewhere."""

    @property
    def prompt(self) -> str:
        """The question: the content of the last message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    """1-based line (JSONL) or row number in the source."""
    reason: str
    """What is wrong with it, in one line."""


Check = Callable[[Row], str | None]
"""Why a row cannot be used although it is one, such as its length; none where it can."""


class BadRows:
    """A growing collection of bad rows; beyond the first MiB they lie in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_BAD_IN_MEMORY, mode="w+", encoding="utf-8")  # noqa: SIM115
        self._count = 0

    def append(self, row: BadRow) -> None:
        self._file.seek(0, 2)
        self._file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[BadRow]:
        self._file.seek(0)
        for line in self._file:
            yield BadRow(**json.loads(line))

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)


def read_rows(
    source: str, config: DataConfig, *, split: Split, count_tokens: CountTokens | None = None
) -> tuple[list[Row], list[BadRow]]:
    """All good rows of `source` in its order, and the bad ones.

    `count_tokens(messages, answer)` gives the tokens of the prompt (chat template included) and of the answer; with
    it, rows beyond `data.max_prompt` or `data.max_answer` are bad. `data.limit` ends the reading of the training set
    after so many good rows. What happens with bad rows is decided by `check_rows`.

    Raises `DataError`, naming the key, the source and the fix, when the source is missing, of an unknown kind, empty,
    or has no usable row.
    """
    check = length_check(config, count_tokens) if count_tokens else None
    rows: list[Row] = []
    bad: list[BadRow] = []
    for _, row in iterate(source, config, split=split, check=check):
        if isinstance(row, Row):
            rows.append(row)
        else:
            bad.append(row)
    check_any(rows, bad, source, split)
    return rows, bad


def iterate(
    source: str,
    config: DataConfig,
    *,
    split: Split,
    check: Check | None = None,
    start: Place = START,
    index: int = 0,
    known_bad: Container[int] = (),
) -> Iterator[tuple[Place, Row | BadRow]]:
    """The rows of `source`, good and bad, one at a time, each with its place; ends after `data.limit` good ones.

    Args:
        check: what a good row must pass besides.
        start: begin at this place, whose row, if good, has the index `index`.
        known_bad: lines that are passed over.

    Raises `DataError` when the source is missing, of an unknown kind or broken.
    """
    limit = config.limit if split == "train" else None
    found = records(source, config, split, start)
    while limit is None or index < limit:
        place, record = next(found, (START, None))
        if record is None:
            return
        if place.line in known_bad:
            continue
        try:
            if isinstance(record, Unusable):
                raise record
            row = _row(record, config, index=index, line=place.line)
            if split == "test":
                row = replace(row, choices=_choices(record, config.choices_field, row.answer))
            if check and (reason := check(row)):
                raise Unusable(reason)
            yield place, row
            index += 1
        except Unusable as error:
            yield place, BadRow(place.line, one_line(str(error))[:_REASON])


def check_any(rows: Sized, bad: Collection[BadRow], source: str, split: Split) -> None:
    """Raises `DataError` for a source that is empty or has bad rows only."""
    where = f"data.{split}={source}"
    if not rows and not bad:
        raise DataError(f"{where}: the data set is empty; each row needs a prompt and an answer")
    if not rows:
        raise DataError(
            f"{where}: none of its {len(bad)} rows can be used ({_some(bad, source)}); each needs a prompt and an "
            "answer, or messages, in the fields that data.prompt_field, data.answer_field and data.messages_field name"
        )


def check_rows(rows: Sized, bad: Collection[BadRow], config: DataConfig, source: str) -> None:
    """Let the run go on with `rows`, or raise `DataError` in one line, as `data.on_bad_row` wants it.

    With `error` any bad row stops the run; with `skip` only a set without a good row does.
    """
    if bad and config.on_bad_row is OnBadRow.error:
        raise DataError(
            f"{source}: {len(bad)} of {len(bad) + len(rows)} rows cannot be used ({_some(bad, source)}); "
            "repair them, or leave them out with data.on_bad_row=skip"
        )
    if not rows:
        reasons = f" ({_some(bad, source)})" if bad else ""
        raise DataError(f"{source}: no row is left that can be used{reasons}; repair the file or name another")


def write_bad_rows(bad: Iterable[BadRow], path: str | Path) -> None:
    """Write one JSON object a bad row, `line` and `reason`, in place of what the file held; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)


def _some(bad: Collection[BadRow], source: str) -> str:
    """The first few bad rows in words."""
    unit = "line" if source.endswith(".jsonl") else "row"
    shown = [f"{unit} {row.line}: {row.reason}" for row in islice(bad, _SHOWN)]
    return "; ".join(shown) + ("; ..." if len(bad) > _SHOWN else "")


# From a record to a row


def _row(record: dict[str, Any], config: DataConfig, *, index: int, line: int) -> Row:
    names = config
    refined = all(record.get(name) is not None for name in ("fused", "messages", "answer"))
    if refined:
        # A refined file has its own column names, whatever the names in the file that it was made from.
        names = DataConfig()
    if record.get(names.messages_field) is not None:
        messages, answer = _chat(record, names)
        if refined:
            # An exported chat ends with the fused answer; the gold answer stands beside it.
            answer = _text(record, names.answer_field)
    else:
        messages = [{"role": "user", "content": _text(record, names.prompt_field)}]
        for name in ("input", "system") if names.prompt_field == "instruction" else ():
            if not _is_nothing(record.get(name)):
                raise Unusable(f"has `{name}` beside `instruction`, and nothing reads it; write both into one field")
        # A file made elsewhere may hold the fused answers alone.
        given = record.get(names.answer_field) is not None
        answer = _text(record, names.answer_field if given or record.get("fused") is None else "fused")
    return Row(
        index=index,
        line=line,
        messages=messages,
        answer=answer,
        answers=_answers(record, names.answers_field, answer),
        rewrite=None if record.get("accepted") is False else _optional(record, "rewrite"),
        fused=_optional(record, "fused"),
    )


def _chat(record: dict[str, Any], names: DataConfig) -> tuple[list[dict[str, str]], str]:
    """The messages before the answer, and the answer: the last message, or a field beside a chat without one."""
    field = names.messages_field
    for offered in ("tools", "functions"):
        if not _is_nothing(record.get(offered)):
            raise Unusable(f"field '{offered}' offers tools, which are not trained on; leave the row out")
    messages = read_chat(record[field], field)
    if messages[-1]["role"] == "assistant":
        *before, last = messages
        answer = last["content"]
    elif record.get(names.answer_field) is not None:
        before, answer = messages, _text(record, names.answer_field)
    else:
        raise Unusable(f"the last of {field} is not an assistant message")
    if not before or before[-1]["role"] != "user":
        raise Unusable(f"{field} have no user message right before the answer")
    if record.get("fused") is None and not _agrees(record.get(names.answer_field), [answer]):
        raise Unusable(
            f"{field} end with another answer than the one in field '{names.answer_field}'; remove one, or have the "
            "field ignored with data.answer_field=NAME, a name that no row has"
        )
    # Of a longer chat, people note the first question or the last, or the whole chat (TRL).
    prompt = record.get(names.prompt_field)
    if not _is_chat(prompt, before, messages) and not _agrees(prompt, [each["content"] for each in before]):
        raise Unusable(
            f"{field} do not hold the question in field '{names.prompt_field}'; remove one, or have the field ignored "
            "with data.prompt_field=NAME, a name that no row has"
        )
    return before, answer


def _agrees(value: Any, texts: list[str]) -> bool:
    """Whether a field beside a chat holds nothing, contains one of `texts` or is a part of one, such as its result.

    Contained is what `raft_ray.data.normalise` finds: whole words, numbers by value. A number counts as its text.
    """
    if value in (None, [], {}):
        return True
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    said = str(value).strip()
    if not said or any(said == text.strip() for text in texts):
        return True
    part = keys(said)
    return any(part and whole and (occurs(whole, part) or occurs(part, whole)) for whole in map(keys, texts))


def _is_chat(value: Any, *chats: list[dict[str, str]]) -> bool:
    """Whether `value` is one of `chats`, spaces at the ends of its messages left out."""
    try:
        read = read_chat(value, "")
    except Unusable:
        return False
    return any(_stripped(read) == _stripped(chat) for chat in chats)


def _stripped(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**message, "content": message["content"].strip()} for message in chat]


def _is_nothing(value: Any) -> bool:
    """Whether a field holds nothing, as itself or written in JSON (`"[]"`)."""
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _answers(record: dict[str, Any], field: str, answer: str) -> list[str]:
    value = record.get(field)
    if value is None:
        return [answer]
    if not isinstance(value, list):
        raise Unusable(f"field '{field}' is not a list of texts")
    others = [checked(item, f"item {number} of '{field}'") for number, item in enumerate(value, start=1)]
    return list(dict.fromkeys([answer, *others]))


def _choices(record: dict[str, Any], field: str, answer: str) -> list[str] | None:
    value = record.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 2:
        raise Unusable(f"field '{field}' is not a list of two or more texts")
    choices = [checked(item, f"item {number} of '{field}'") for number, item in enumerate(value, start=1)]
    if len(set(choices)) < len(choices):
        raise Unusable(f"field '{field}' names a choice twice")
    if answer not in choices:
        raise Unusable(f"the answer is none of the texts in '{field}'")
    return choices


def _text(record: dict[str, Any], field: str) -> str:
    if record.get(field) is None:
        names = [name for name, value in record.items() if value is not None]
        there = ", ".join(names[:_FIELDS_SHOWN]) + (", ..." if len(names) > _FIELDS_SHOWN else "") or "none"
        raise Unusable(f"field '{field}' is missing (fields there: {there})")
    return checked(record[field], field)


def _optional(record: dict[str, Any], field: str) -> str | None:
    return None if record.get(field) is None else checked(record[field], field)


def length_check(config: DataConfig, count_tokens: CountTokens) -> Check:
    """What refuses rows beyond `data.max_prompt` or `data.max_answer`, which bounds each of the answers and choices.

    Of a text of megabytes, which would take minutes and gigabytes, the beginning is counted first: where that alone has
    more than twice the tokens allowed, so has the whole.
    """

    def check(row: Row) -> str | None:
        most_prompt, most_answer = _CHARACTERS * config.max_prompt, _CHARACTERS * config.max_answer
        targets = [("answer", row.answer), ("fused answer", row.fused), ("rewrite", row.rewrite)]
        for name, texts in (("one of the answers", row.answers), ("one of the choices", row.choices or [])):
            targets += [(name, text) for text in texts if text != row.answer]
        begun = [{**message, "content": message["content"][:most_prompt]} for message in row.messages]
        for name, text in targets:
            if text is None:
                continue
            try:
                if begun != row.messages or len(text) > most_answer:
                    prompt_tokens, answer_tokens = count_tokens(begun, text[:most_answer])
                    if prompt_tokens > 2 * config.max_prompt:
                        return f"prompt has more than {prompt_tokens} tokens, data.max_prompt is {config.max_prompt}"
                    if answer_tokens > 2 * config.max_answer:
                        return f"{name} has more than {answer_tokens} tokens, data.max_answer is {config.max_answer}"
                prompt_tokens, answer_tokens = count_tokens(row.messages, text)
            except DataError as error:
                return str(error)
            if prompt_tokens > config.max_prompt:
                return f"prompt has {prompt_tokens} tokens, data.max_prompt is {config.max_prompt}"
            if answer_tokens > config.max_answer:
                return f"{name} has {answer_tokens} tokens, data.max_answer is {config.max_answer}"
        return None

    return check
