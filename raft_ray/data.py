"""Rows to train and test on: reads every kind of source into `Row`s, and says of each bad row what is wrong with it.

A source is a `.jsonl` or `.parquet` file, a folder of `part-*.parquet` files (a run's `refined/`), any other folder
that `datasets` loads, the name of a Hugging Face data set (`owner/name` or `owner/name:configuration`), or
`domain:NAME`. Texts are taken as they stand: nothing is stripped, cut or repaired.

Knows nothing about models: lengths come from a function that the caller passes. `datasets` and `pyarrow` are
imported inside the functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raft_ray.config import DataConfig, OnBadRow
from raft_ray.errors import DataError

Split = Literal["train", "test"]
CountTokens = Callable[[list[dict[str, str]], str], tuple[int, int]]

_ROLES = ("system", "user", "assistant")
_SHOWN = 5
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<configuration>[\w.-]+))?")
_FILE_ENDINGS = {".jsonl", ".parquet", ".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".xlsx", ".arrow", ".yaml"}


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
    """The gold answer y."""
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


class _Unusable(Exception):
    """Why a record is no row; never leaves this module."""


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
    where = f"data.{split}={source}"
    limit = config.limit if split == "train" else None
    rows: list[Row] = []
    bad: list[BadRow] = []
    for line, record in _records(source, config, split, where):
        if limit is not None and len(rows) >= limit:
            break
        try:
            if isinstance(record, _Unusable):
                raise record
            row = _row(record, config, index=len(rows), line=line)
            if split == "test":
                row = replace(row, choices=_choices(record, config.choices_field, row.answer))
            if count_tokens is not None:
                _check_length(row, config, count_tokens)
            rows.append(row)
        except _Unusable as error:
            bad.append(BadRow(line, str(error)))
    if not rows and not bad:
        raise DataError(f"{where}: the data set is empty; each row needs a prompt and an answer")
    if not rows:
        raise DataError(f"{where}: none of its {len(bad)} rows can be used ({_some(bad, source)})")
    return rows, bad


def check_rows(rows: list[Row], bad: list[BadRow], config: DataConfig, source: str) -> None:
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
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
    path.write_text("".join(lines), encoding="utf-8")


def _some(bad: list[BadRow], source: str) -> str:
    """The first few bad rows in words."""
    unit = "line" if source.endswith(".jsonl") else "row"
    shown = [f"{unit} {row.line}: {row.reason}" for row in bad[:_SHOWN]]
    return "; ".join(shown) + ("; ..." if len(bad) > _SHOWN else "")


# Sources: each yields (1-based line, record), a record that could not even be read being an `_Unusable`.

_Records = Iterator[tuple[int, "dict[str, Any] | _Unusable"]]


def _records(source: str, config: DataConfig, split: Split, where: str) -> _Records:
    if source.startswith("domain:"):
        from raft_ray.domains import load

        return enumerate(load(source.removeprefix("domain:"), split), start=1)
    path = Path(source).expanduser()
    if path.is_dir():
        parts = sorted(path.glob("part-*.parquet"))
        if parts:
            return _parquet(parts, where)
        if any((path / "refined").glob("part-*.parquet")):
            raise DataError(f"{where}: this is a run folder; its rows are in {path / 'refined'}")
        return _datasets(str(path), None, config, split, where)
    if path.suffix == ".jsonl" and path.is_file():
        return _jsonl(path, where)
    if path.suffix == ".parquet" and path.is_file():
        return _parquet([path], where)
    if path.exists():
        ending = f"unknown file type {path.suffix}" if path.suffix else "a file without an ending"
        raise DataError(f"{where}: {ending}; convert it to .jsonl or .parquet")
    hub = _HUB_NAME.fullmatch(source)
    if path.suffix in _FILE_ENDINGS or hub is None or source.startswith(("./", "../")):
        raise DataError(
            f"{where}: no such file; name a .jsonl or .parquet file, a Hugging Face data set, or domain:NAME"
        )
    return _datasets(hub["name"], hub["configuration"], config, split, where)


def _jsonl(path: Path, where: str) -> _Records:
    """Reads bytes, so that a line which is not UTF-8 costs only itself. Blank lines are passed over."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, _parse(line)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}; make the file readable") from error


def _parse(line: bytes) -> dict[str, Any] | _Unusable:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return _Unusable("not UTF-8")
    except json.JSONDecodeError as error:
        return _Unusable(f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # numbers and nestings beyond Python's limits
        return _Unusable(f"not JSON: {_first_line(error)}")
    return record if isinstance(record, dict) else _Unusable("not a JSON object")


def _parquet(parts: list[Path], where: str) -> _Records:
    """Rows are numbered through all parts, in the order of the parts' names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    for part in parts:
        try:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(batch_size=1024):
                    for record in batch.to_pylist():
                        number += 1
                        yield number, record
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{where}: {part.name} cannot be read as Parquet ({_first_line(error)}); write it anew"
            ) from error


def _datasets(name: str, configuration: str | None, config: DataConfig, split: Split, where: str) -> _Records:
    from datasets import load_dataset, load_from_disk

    wanted = config.train_split if split == "train" else config.test_split
    try:
        if any((Path(name) / saved).exists() for saved in ("dataset_dict.json", "state.json")):
            loaded = load_from_disk(name)
            data = loaded[wanted] if isinstance(loaded, dict) else loaded
        else:
            data = load_dataset(name, configuration, split=wanted)
    # What the hub's client raises depends on its version and on httpx; all of it means that there is no data.
    except Exception as error:
        cause = f"{type(error).__name__}: {_first_line(error)}"
        if Path(name).is_dir():
            fix = f"check the folder, and data.{split}_split ({wanted})"
        else:
            fix = (
                f"there is no such file, and as a Hugging Face data set it could not be loaded; check the name, "
                f"data.{split}_split ({wanted}) and the connection to the hub, or name a .jsonl or .parquet file"
            )
        raise DataError(f"{where}: {fix} ({cause})") from error
    return enumerate(data, start=1)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# From a record to a row


def _row(record: dict[str, Any], config: DataConfig, *, index: int, line: int) -> Row:
    names = config
    if all(record.get(name) is not None for name in ("fused", "messages", "answer")):
        # A refined file has its own column names, whatever the names in the file that it was made from.
        names = DataConfig()
    if record.get(names.messages_field) is not None:
        messages, answer = _chat(record, names)
    else:
        messages = [{"role": "user", "content": _text(record, names.prompt_field)}]
        answer = _text(record, names.answer_field)
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
    value = record[field]
    if not isinstance(value, list) or not value:
        raise _Unusable(f"field '{field}' is not a list of messages")
    messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise _Unusable(f"message {number} is not an object with role and content")
        if message.get("role") not in _ROLES:
            raise _Unusable(f"message {number} has role {message.get('role')!r}; it must be one of {', '.join(_ROLES)}")
        content = _checked(message.get("content"), f"content of message {number}")
        messages.append({"role": message["role"], "content": content})
    if messages[-1]["role"] == "assistant":
        *before, last = messages
        answer = last["content"]
    elif record.get(names.answer_field) is not None:
        before, answer = messages, _text(record, names.answer_field)
    else:
        raise _Unusable(f"{field} do not end with an assistant message")
    if not before or before[-1]["role"] != "user":
        raise _Unusable(f"{field} have no user message right before the answer")
    return before, answer


def _answers(record: dict[str, Any], field: str, answer: str) -> list[str]:
    value = record.get(field)
    if value is None:
        return [answer]
    if not isinstance(value, list):
        raise _Unusable(f"field '{field}' is not a list of texts")
    others = [_checked(item, f"item {number} of '{field}'") for number, item in enumerate(value, start=1)]
    return list(dict.fromkeys([answer, *others]))


def _choices(record: dict[str, Any], field: str, answer: str) -> list[str] | None:
    value = record.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 2:
        raise _Unusable(f"field '{field}' is not a list of two or more texts")
    choices = [_checked(item, f"item {number} of '{field}'") for number, item in enumerate(value, start=1)]
    if len(set(choices)) < len(choices):
        raise _Unusable(f"field '{field}' names a choice twice")
    if answer not in choices:
        raise _Unusable(f"the answer is none of the texts in '{field}'")
    return choices


def _text(record: dict[str, Any], field: str) -> str:
    if record.get(field) is None:
        there = ", ".join(name for name, value in record.items() if value is not None) or "none"
        raise _Unusable(f"field '{field}' is missing (fields there: {there})")
    return _checked(record[field], field)


def _optional(record: dict[str, Any], field: str) -> str | None:
    return None if record.get(field) is None else _checked(record[field], field)


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"{what} is not text ({type(value).__name__})")
    if not value.strip():
        raise _Unusable(f"{what} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unusable(f"{what} has half of a surrogate pair, which is no character") from None
    return value


def _check_length(row: Row, config: DataConfig, count_tokens: CountTokens) -> None:
    targets = {"answer": row.answer, "fused answer": row.fused, "rewrite": row.rewrite}
    for name, text in targets.items():
        if text is None:
            continue
        prompt_tokens, answer_tokens = count_tokens(row.messages, text)
        if prompt_tokens > config.max_prompt:
            raise _Unusable(f"prompt has {prompt_tokens} tokens, data.max_prompt is {config.max_prompt}")
        if answer_tokens > config.max_answer:
            raise _Unusable(f"{name} has {answer_tokens} tokens, data.max_answer is {config.max_answer}")
