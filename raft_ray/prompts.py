"""What the student and the teacher read, as token ids, and the exact join of prompt and response.

Student: the chat, then its response. Teacher: the same chat with the last question put into the teacher template
together with the reference answer (Eq. 7), then the *student's* response ids, verbatim. Nothing is ever decoded
and encoded again, so both read the same tokens at every response position.

Knows nothing about models or Ray; needs a tokenizer with a chat template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raft_ray.config import OnLongReference, TeacherConfig
from raft_ray.errors import DataError
from raft_ray.templates import fill, load_prompt

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class EncodedRow:
    """A training row as token ids."""

    row: int
    """Index in the training set."""
    prompt: list[int]
    """What the student reads before it answers."""
    answer: list[int]
    """The target of the cross-entropy, its end-of-turn token included."""
    teacher_prompt: list[int]
    """What the teacher reads before the student's response; empty for methods without a teacher."""


def load_teacher_template(teacher: TeacherConfig) -> str:
    """The text of `teacher.template`, with `{prompt}` and `{answer}` in it. Raises `ConfigError`."""
    return load_prompt(teacher.template, ("prompt", "answer"), "teacher.template")


def rows_digest(table: Mapping[int, EncodedRow]) -> str:
    """Of a training set as student and teacher meet it, in its order: equal for equal sets only."""
    digest = hashlib.sha256()
    for row in table.values():
        for ids in (row.prompt, row.answer, row.teacher_prompt):
            digest.update(np.asarray([len(ids), *ids], np.int32).tobytes())
    return digest.hexdigest()[:16]


@dataclass
class PromptEncoder:
    """Chats to token ids.

    Args:
        tokenizer: with a chat template.
        context: longest prompt + response in tokens.
        max_new_tokens: longest response, for which a prompt must leave room.
        teacher_template: text with `{prompt}` and `{answer}`; none for a teacher that reads what the student reads.
        on_long_reference: what to do with a teacher prompt that does not fit.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int
    max_new_tokens: int = 0
    teacher_template: str | None = None
    on_long_reference: OnLongReference = OnLongReference.error

    def prompt(self, messages: Messages) -> list[int]:
        """Ids up to and including the marker that opens the assistant's turn."""
        return self._encode(self._prompt_text(messages))

    def answer(self, messages: Messages, answer: str) -> list[int]:
        """Ids of the assistant's turn as the chat template writes it, up to and including its end-of-turn token.

        Encoded apart from the prompt, because generation, too, starts after the prompt's ids.
        """
        prompt = self._prompt_text(messages)
        full = self._template([*messages, {"role": "assistant", "content": answer}], generate=False)
        # Some templates rewrite earlier turns once an answer follows; the turn itself is then answer + end.
        ids = self._encode(full[len(prompt) :] if full.startswith(prompt) else answer)
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else [*ids, end]

    def teacher_prompt(self, messages: Messages, reference: str, where: str = "row") -> list[int]:
        """Ids that the teacher reads before the response: Eq. 7's reference and question in the last user turn.

        A prompt that leaves no room for `max_new_tokens` is an error naming its length, or, with `shorten`, its
        reference is cut from the end until it fits; question and template stay whole.

        Raises `DataError`.
        """
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
        tokens = self._encode(reference)
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
        prompt = self.prompt(messages)
        answer = self.answer(messages, target)
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

    def _prompt_text(self, messages: Messages) -> str:
        return self._template(messages, generate=True)

    def _template(self, messages: Messages, generate: bool) -> str:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> list[int]:
        # The template writes every special token itself.
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def show_row(encoder: PromptEncoder, row: EncodedRow, console: Console, around: int = 6) -> None:
    """Print what student and teacher read for a row, and the ids on both sides of the joins."""
    from rich.markup import escape

    def decode(ids: list[int]) -> str:
        return str(encoder.tokenizer.decode(ids))

    parts = [("student", row.prompt)]
    if row.teacher_prompt:
        parts.append(("teacher", row.teacher_prompt))
    for name, prompt in parts:
        console.rule(f"[bold]{name}[/] reads {len(prompt)} tokens, then the response", align="left")
        console.print(escape(decode(prompt)), highlight=False, end="")
        console.print(f"[green]{escape(decode(row.answer))}[/]", highlight=False)
        console.print("\n[bold]The join[/], as id:token")
        for label, ids, style in (
            ("prompt ends", prompt[-around:], "yellow"),
            ("response begins", row.answer[:around], "green"),
        ):
            cells = "  ".join(f"{i}:{decode([i])!r}" for i in ids)
            console.print(f"[dim]{label:>15}[/]  [{style}]{escape(cells)}[/]", highlight=False)
        console.print()
    console.print(
        f"The answer has {len(row.answer)} tokens and ends with id {row.answer[-1]} ({decode(row.answer[-1:])!r}). "
        "In training the response is what the student samples; the teacher gets the same ids.",
        highlight=False,
    )
