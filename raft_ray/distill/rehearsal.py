"""The prompts of rehearsal rows: read from a source, kept in `rehearsal.jsonl`, and made rows of the table.

```
 the model itself (actors/refine/prompts.py, Sieve) ──┐
 a file, data set, .. (`given_prompts`) ──────────────┴─> with_forms ──> RUN/rehearsal.jsonl ──> encode_prompts
                    the model's own answers, for `replay` ───┘
```

The file is written once: a run that goes on reads it, so that its rows are the same whatever would be written now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from raft_ray.config import ColumnsConfig, Config, OnBadRow
from raft_ray.data.messages import read_chat
from raft_ray.data.record import prompt_of
from raft_ray.data.sources import records
from raft_ray.distill.forms import all_forms, draw_forms
from raft_ray.errors import DataError, RaftError
from raft_ray.files import write_whole
from raft_ray.json_files import Unusable, read_lines
from raft_ray.models.chat import Chat
from raft_ray.models.prompts import EncodedRow

FILE = "rehearsal.jsonl"

Messages = list[dict[str, str]]
Answer = tuple[str, bool]
"""A text, and whether the token limit ended it."""


def room(config: Config, chat: Chat, context: int) -> Callable[[Messages], bool]:
    """Whether a prompt leaves room for an answer in the context, and for any form that it may end with."""
    rehearsal = config.distill.rehearsal
    most = context - rehearsal.max_new_tokens
    if rehearsal.forms:
        # Joined to the prompt, a form may take a token more.
        most -= 1 + max(len(chat.content(f" {form}")) for forms in all_forms() for form in forms)
    return lambda messages: len(chat.prompt(messages)) <= most


def given_prompts(config: Config, chat: Chat, context: int) -> list[Messages]:
    """The prompts of the source that `distill.rehearsal.prompts` names: of its first `count` rows that can be used.
    Raises `DataError` for a source that cannot be read, a row that cannot be used (`data.on_bad_row`), and too few."""
    rehearsal = config.distill.rehearsal
    where = f"distill.rehearsal.prompts={rehearsal.prompts}"
    fits = room(config, chat, context)
    found: list[Messages] = []
    bad = 0
    try:
        for place, record in records(rehearsal.prompts, config.data, "train"):
            try:
                if isinstance(record, Unusable):
                    raise record
                messages = prompt_of(record, ColumnsConfig())
                if not fits(messages):
                    raise Unusable(
                        f"leaves no room for distill.rehearsal.max_new_tokens={rehearsal.max_new_tokens} in a context "
                        f"of {context}"
                    )
            except (Unusable, DataError) as error:
                if config.data.on_bad_row is OnBadRow.error:
                    raise DataError(
                        f"{where}: {place}: {error}; repair it, or leave it out with data.on_bad_row=skip"
                    ) from error
                bad += 1
                continue
            found.append(messages)
            if len(found) == rehearsal.count:
                return found
    except DataError as error:
        raise DataError(str(error).replace(f"data.train={rehearsal.prompts}", where, 1)) from error
    raise DataError(
        f"{where}: has {len(found)} prompts that can be used{f' and {bad} that cannot' if bad else ''}, fewer than "
        f"distill.rehearsal.count={rehearsal.count}; lower that, or name a larger source"
    )


def with_forms(prompts: Iterable[Messages], share: float, seed: int) -> list[dict[str, Any]]:
    """Lines of `rehearsal.jsonl`: `messages`, and the `form` with which the last of them ends, or null."""
    prompts = list(prompts)
    lines = []
    for (*before, last), form in zip(prompts, draw_forms(len(prompts), share, seed), strict=True):
        content = last["content"]
        if form is not None:
            asked = content.rstrip()
            content = f"{asked}{' ' if asked.endswith(('.', '?', '!')) else chr(10)}{form}"
        lines.append({"messages": [*before, {**last, "content": content}], "form": form})
    return lines


def write_prompts(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write `rehearsal.jsonl` of a run folder, whole or not at all."""
    write_whole(folder / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_prompts(folder: Path, count: int) -> list[Messages]:
    """The `count` prompts in `rehearsal.jsonl` of a run folder. Raises `RaftError` for a broken line, and others."""
    path, prompts = folder / FILE, []
    for where, line in read_lines(path):
        try:
            prompts.append(read_chat(line.get("messages"), "messages"))
        except Unusable as error:
            raise RaftError(f"{where}: {error}; put the file back as it was, or start anew with --run-dir") from error
    if len(prompts) != count:
        raise RaftError(
            f"{path}: {len(prompts)} prompts, not distill.rehearsal.count={count}; go on with what the run began with, "
            "or, before its first step, remove the file"
        )
    return prompts


def read_answers(folder: Path) -> list[Answer]:
    """The original model's answers in `rehearsal.jsonl` of a run folder. Raises `RaftError` for a line without one."""
    answers = []
    for where, line in read_lines(folder / FILE):
        if not isinstance(line.get("answer"), str):
            raise RaftError(
                f"{where}: has no answer to replay (distill.rehearsal.kind); remove the file, or start anew"
            )
        answers.append((line["answer"], bool(line.get("truncated"))))
    return answers


def encode_prompts(
    prompts: Sequence[Messages],
    chat: Chat,
    *,
    context: int,
    max_new_tokens: int,
    first: int,
    answers: Sequence[Answer] | None = None,
    scored: bool = False,
) -> dict[int, EncodedRow]:
    """Rehearsal rows by index, from `first` on: the teacher reads what the student reads, and there is no answer; or
    the original model's, without an end of turn where the token limit ended it, and no teacher. If `scored`, it is a
    response that the teacher scores. Raises `DataError` for a prompt that leaves no room for an answer of
    `max_new_tokens`."""
    rows = {}
    for index, messages in enumerate(prompts, start=first):
        ids = chat.prompt(messages)
        if len(ids) + max_new_tokens > context:
            raise DataError(
                f"{FILE}: prompt {index - first} has {len(ids)} tokens and leaves no room for "
                f"distill.rehearsal.max_new_tokens={max_new_tokens} in a context of {context}; lower that"
            )
        if answers is None:
            rows[index] = EncodedRow(index, ids, [], ids)
            continue
        text, truncated = answers[index - first]
        try:
            turn = chat.turn(messages, text)
        except DataError as error:
            raise DataError(f"{FILE}: prompt {index - first}: {error}") from error
        # Encoded anew, a text may have a token more; one cut before its first word has its end alone.
        answer = ((truncated and turn[:-1]) or turn)[:max_new_tokens]
        if scored:
            rows[index] = EncodedRow(index, ids, [], ids, response=tuple(answer))
        else:
            rows[index] = EncodedRow(index, ids, answer, [], replayed=True)
    return rows
