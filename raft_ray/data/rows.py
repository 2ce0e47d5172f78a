"""Rows to train and test on: what a source holds as `Row`s, and of each bad row what is wrong with it.

    source ── sources, files ──> records ── record, check ──> good rows ──> a list, or a `RowTable` on disk
                                                 └──────────> bad rows

Knows nothing about models: lengths come from a function that the caller passes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from raft_ray.config import DataConfig, OnBadRow
from raft_ray.data.files import Place
from raft_ray.data.record import row_fields
from raft_ray.data.sources import Source, Split, records
from raft_ray.errors import DataError
from raft_ray.json_files import Unusable
from raft_ray.printable import one_line

CountTokens = Callable[[list[dict[str, str]], str], tuple[int, int]]

_SHOWN = 5
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
    """1-based line or row number in its file."""
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
    file: str = ""
    """Where it stands, if the source has several files."""

    @property
    def prompt(self) -> str:
        """The question: the content of the last message."""
        return self.messages[-1]["content"]

    @property
    def where(self) -> str:
        """Such as `row 3`, in words that follow the source."""
        return str(Place(self.line, "row", self.file))


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    """1-based line or row number in its file."""
    reason: str
    """What is wrong with it, in one line."""
    unit: str = "row"
    """What `line` counts: `line` or `row`."""
    file: str = ""
    """Where it stands, if the source has several files."""


Check = Callable[[Row], str | None]
"""Why a row cannot be used although it is one, such as its length; none where it can."""


class BadRows:
    """A growing collection of bad rows; beyond the first MiB they lie in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_BAD_IN_MEMORY, mode="w+", encoding="utf-8")  # noqa: SIM115
        self._count = 0

    def append(self, row: BadRow) -> None:
        self._file.seek(0, 2)
        self._file.write(json.dumps(asdict(row)) + "\n")
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
    source: Source, config: DataConfig, *, split: Split, count_tokens: CountTokens | None = None
) -> tuple[list[Row], list[BadRow]]:
    """All good rows of `source` in its order, and the bad ones, in memory.

    `count_tokens(messages, answer)` gives the tokens of the prompt (chat template included) and of the answer; with
    it, rows beyond `data.max_prompt` or `data.max_answer` are bad. `data.limit` ends the reading of the training set
    after so many good rows. What happens with bad rows is decided by `check_rows`.

    Raises `DataError`, naming the key, the source and the fix, when the source is missing, of an unknown kind, empty,
    or has no usable row.
    """
    check = length_check(config, count_tokens) if count_tokens else None
    rows: list[Row] = []
    bad: list[BadRow] = []
    for row in iterate(source, config, split=split, check=check):
        if isinstance(row, Row):
            rows.append(row)
        else:
            bad.append(row)
    check_any(rows, bad, source, split)
    return rows, bad


def iterate(source: Source, config: DataConfig, *, split: Split, check: Check | None = None) -> Iterator[Row | BadRow]:
    """The rows of `source`, good and bad, one at a time; ends after `data.limit` good ones of the training set.
    `check`: what a good row must pass besides. Raises `DataError` when the source is missing, of an unknown kind or
    broken."""
    limit = config.limit if split == "train" else None
    index = 0
    for (line, unit, file), record in records(source, config, split):
        try:
            if isinstance(record, Unusable):
                raise record
            fields = row_fields(record, config.columns, with_choices=split == "test")
            row = Row(index=index, line=line, file=file, **fields)
            if check and (reason := check(row)):
                raise Unusable(reason)
        except Unusable as error:
            yield BadRow(line, one_line(str(error))[:_REASON], unit, file)
            continue
        yield row
        index += 1
        if index == limit:
            return


def check_any(rows: Sized, bad: Collection[BadRow], source: Source, split: Split) -> None:
    """Raises `DataError` for a source that is empty or has bad rows only."""
    where = f"data.{split}={source}"
    if not rows and not bad:
        raise DataError(f"{where}: the data set is empty; each row needs a prompt and an answer")
    if not rows:
        raise DataError(
            f"{where}: none of its {len(bad)} rows can be used ({_some(bad)}); each needs a prompt and an answer, or "
            "messages, in the usual fields or those that data.columns.prompt, .answer and .messages name"
        )


def check_rows(rows: Sized, bad: Collection[BadRow], config: DataConfig, source: str) -> None:
    """Let the run go on with `rows`, or raise `DataError` in one line, as `data.on_bad_row` wants it. With `error` any
    bad row stops the run; with `skip` only a set without a good row does."""
    if bad and config.on_bad_row is OnBadRow.error:
        raise DataError(
            f"{source}: {len(bad)} of {len(bad) + len(rows)} rows cannot be used ({_some(bad)}); "
            "repair them, or leave them out with data.on_bad_row=skip"
        )
    if not rows:
        reasons = f" ({_some(bad)})" if bad else ""
        raise DataError(f"{source}: no row is left that can be used{reasons}; repair the file or name another")


def write_bad_rows(bad: Iterable[BadRow], path: str | Path) -> None:
    """Write a JSON object per bad row (`line`, `reason`, perhaps `file`) anew to `path`; makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in bad:
            named = {"file": row.file} if row.file else {}
            file.write(json.dumps({**named, "line": row.line, "reason": row.reason}, ensure_ascii=False) + "\n")


def _some(bad: Collection[BadRow]) -> str:
    """The first few bad rows in words."""
    shown = [f"{Place(row.line, row.unit, row.file)}: {row.reason}" for row in islice(bad, _SHOWN)]
    return "; ".join(shown) + ("; ..." if len(bad) > _SHOWN else "")


def length_check(config: DataConfig, count_tokens: CountTokens) -> Check:
    """What refuses rows beyond `data.max_prompt` or `data.max_answer`, which bounds each of the answers and choices. Of
    a text of megabytes, which would take minutes and gigabytes, the beginning is counted first: where that alone has
    more than twice the tokens allowed, so has the whole."""

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
