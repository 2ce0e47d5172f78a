"""What the student and the teacher read, as token ids, and the exact join of prompt and response.

Student: the chat, then its response. Teacher: the same chat with the last question put into the teacher template
together with the reference answer (Eq. 7), then the *student's* response ids, verbatim. Nothing is ever decoded
and encoded again, so both read the same tokens at every response position.

Knows nothing about models or Ray; how a chat becomes ids is `raft_ray.models.chat`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raft_ray.config import OnLongReference, TeacherConfig
from raft_ray.errors import DataError
from raft_ray.models.chat import Chat
from raft_ray.models.templates import fill, load_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class EncodedRow:
    """A row of the training set, or a rehearsal row, as token ids."""

    row: int
    """Index in the training set; rehearsal rows are numbered on from its end."""
    prompt: list[int]
    """What the student reads before it answers."""
    answer: list[int]
    """The target of the cross-entropy, its end-of-turn token included; empty for a rehearsal row that is sampled."""
    teacher_prompt: list[int]
    """What the teacher reads before the student's response; empty for rows that no teacher scores."""

    replayed: bool = False
    """A rehearsal row whose answer is the original model's."""
    response: tuple[int, ...] = ()
    """What the teacher scores of a rehearsal row where nobody samples it (`distill.rehearsal.kind=replay_kl`)."""

    @property
    def rehearses(self) -> bool:
        """It is a rehearsal row: a general prompt, for which there is no answer but perhaps the original model's."""
        return self.replayed or not self.answer


def load_teacher_template(teacher: TeacherConfig) -> str:
    """The text of `teacher.template`, with `{prompt}` and `{answer}` in it. Raises `ConfigError`."""
    return load_prompt(teacher.template, ("prompt", "answer"), "teacher.template")


def rows_digest(table: Mapping[int, EncodedRow]) -> str:
    """Of a training set as student and teacher meet it, in its order: equal for equal sets only."""
    digest = hashlib.sha256()
    for row in table.values():
        for ids in (row.prompt, row.answer, row.teacher_prompt, *([row.response] if row.response else [])):
            digest.update(np.asarray([len(ids), *ids], np.int32).tobytes())
    return digest.hexdigest()[:16]


@dataclass
class PromptEncoder:
    """Chats to token ids."""

    chat: Chat
    context: int
    """Longest prompt + response in tokens."""
    max_new_tokens: int = 0
    """Longest response, for which a prompt must leave room."""
    teacher_template: str | None = None
    """Text with `{prompt}` and `{answer}`; none for a teacher that reads what the student reads."""
    on_long_reference: OnLongReference = OnLongReference.error

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The chat's."""
        return self.chat.tokenizer

    def prompt(self, messages: Messages) -> list[int]:
        """Ids up to and including the marker that opens the assistant's turn. Raises `DataError`."""
        return self.chat.prompt(messages)

    def answer(self, messages: Messages, answer: str) -> list[int]:
        """Ids of the assistant's turn, as `Chat.turn`. Raises `DataError`."""
        return self.chat.turn(messages, answer)

    def teacher_prompt(self, messages: Messages, reference: str, where: str = "row") -> list[int]:
        """Ids that the teacher reads before the response: Eq. 7's reference and question in the last user turn. A
        prompt that leaves no room for `max_new_tokens` is an error naming its length, or, with `shorten`, its reference
        is cut from the end until it fits; question and template stay whole. Raises `DataError`."""
        if self.teacher_template is None:
            return self.prompt(messages)
        room = self.context - self.max_new_tokens
        ids = self.prompt(self._teacher_messages(messages, reference))
        if len(ids) <= room:
            return ids
        if self.on_long_reference is OnLongReference.error:
            raise DataError(
                f"{where}: the teacher's prompt has {len(ids)} tokens and leaves no room for "
                f"rollout.max_new_tokens={self.max_new_tokens} in a context of {self.context}; "
                "set teacher.on_long_reference=shorten, or raise model.context"
            )
        tokens = self.chat.content(reference)
        keep = len(tokens)
        while len(ids) > room and keep > 0:
            # At least one token less each time: joins can make the text a token longer than counted.
            keep = max(0, keep - max(1, len(ids) - room))
            ids = self.prompt(self._teacher_messages(messages, str(self.tokenizer.decode(tokens[:keep]))))
        if len(ids) > room:
            raise DataError(
                f"{where}: the teacher's prompt has {len(ids)} tokens without any reference and leaves no room for "
                f"rollout.max_new_tokens={self.max_new_tokens} in a context of {self.context}"
            )
        return ids

    def row(self, row: int, messages: Messages, target: str, reference: str | None, where: str = "row") -> EncodedRow:
        """A whole row; `reference=None` for methods without a teacher. Raises `DataError` if it does not fit."""
        try:
            prompt, answer = self.prompt(messages), self.answer(messages, target)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        longest = max(len(answer), self.max_new_tokens)
        if len(prompt) + longest > self.context:
            raise DataError(
                f"{where}: {len(prompt)} tokens of prompt and {longest} of response do not fit a context of "
                f"{self.context}; lower data.max_prompt, data.max_answer or rollout.max_new_tokens"
            )
        teacher = [] if reference is None else self.teacher_prompt(messages, reference, where)
        return EncodedRow(row, prompt, answer, teacher)

    def _teacher_messages(self, messages: Messages, reference: str) -> Messages:
        assert self.teacher_template is not None
        *before, last = messages
        content = fill(self.teacher_template, prompt=last["content"], answer=reference)
        return [*before, {"role": last["role"], "content": content}]
