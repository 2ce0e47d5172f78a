"""A tokenizer's chat template as a run uses it: the one place where a chat becomes token ids, and ids become text.

    messages ── hide markers in contents ──> template ──> text ──> template's markers as tokens, contents as text
                                                          ids <──┘

What a row says is text, whatever it says: an answer that names `<|im_end|>` neither ends there nor opens a turn. The
date that a template prints and its mode of thinking are fixed; the time of day is midnight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date as Date
from datetime import datetime, time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jinja2

from raft_ray.errors import DataError, ModelError, first_line
from raft_ray.models.thinking import begins_with_thinking, open_block, without_thinking

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

_SWITCHES = {
    "enable_thinking": r"\benable_thinking\b",
    "thinking": r"\bthinking is (?:not )?defined\b|\bif (?:not )?thinking\b",
}
"""Variables by which templates switch thinking on and off, and how one tells that a template has one."""
_TAGS = ("<think>", "</think>")
_HIDDEN = 0xF0000
"""Added to the characters of a marker's text in a content, which puts them into a private-use plane: no template and no
tokenizer knows them there."""
_SENTINEL = "\U0010fffd\U0010fffc\U0010fffd"
_QUESTION, _ANSWER = "Question?", "Answer."


def with_thinking(template: str, thinking: bool) -> str:
    """A chat template that thinks or not unless its caller says otherwise; unchanged where it knows no such choice."""
    for name, pattern in _SWITCHES.items():
        # What an earlier export wrote in front; the template's own first line break must survive.
        written = r"\{%- set NAME = (?:true|false) if NAME is not defined else NAME \+%\}".replace("NAME", name)
        template = re.sub(written, "", template)
        if re.search(pattern, template):
            value = str(thinking).lower()
            template = f"{{%- set {name} = {value} if {name} is not defined else {name} +%}}" + template
    return template


class Chat:
    """Chats to token ids and back.

    Args:
        tokenizer: with a chat template.
        size: tokens that the model has rows for; none does not look.
        stops: ids on which the model's generation config stops.
        thinking: the model thinks before it answers, where its template knows that choice.
        date: that templates print, YYYY-MM-DD; none takes today's.
        where: opens error messages: which model this is.

    Raises `ModelError` for a template that cannot be used: one that does not compile, refuses a question, leaves out
    what it is given, opens no assistant's turn, opens a block of thinking that nobody asked for, or cannot be told to
    think.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        size: int | None = None,
        stops: Iterable[int] = (),
        thinking: bool = False,
        date: str | None = None,
        where: str = "the model",
    ) -> None:
        self.tokenizer = tokenizer
        self.thinking = thinking
        self._size = size
        self._midnight = datetime.combine(Date.fromisoformat(date) if date else Date.today(), time())
        self._template = _default_template(tokenizer, where)
        self._markers = {
            id: token.content
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special or self._is_marker(token.content)
        }
        named = {*self._markers.values(), *(tag for tag in _TAGS if tag in self._template)}
        # The longest first: one may begin as another does.
        texts = sorted(named, key=len, reverse=True)
        self._marker = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self._hidden = re.compile("|".join(_shifted(text, _HIDDEN) for text in texts) or r"(?!)")
        self._opening = ("", "")
        end = self._probed(where)
        if tokenizer.eos_token_id is None and end is None:
            raise ModelError(f"{where}: neither tokenizer nor chat template has an end-of-turn token")
        self.end_id: int = tokenizer.eos_token_id if end is None else end
        """The token that ends an assistant's turn."""
        self._named = sorted(set(stops))
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids: list[int] = sorted({*self._named, *eos, self.end_id})
        """The tokens on which generation stops: those of generation config, tokenizer and template together."""

    def prompt(self, messages: Messages) -> list[int]:
        """Ids up to and including the marker that opens the assistant's turn. Raises `DataError`."""
        return self._encode(self._render(messages, generate=True))

    def turn(self, messages: Messages, answer: str) -> list[int]:
        """Ids of the assistant's turn as the template writes it, up to and including the first token on which
        generation stops. Raises `DataError`. Encoded apart from the prompt, because generation, too, starts after the
        prompt's ids."""
        prompt = self._render(messages, generate=True)
        full = self._render([*messages, {"role": "assistant", "content": answer}], generate=False)
        begin, end = _TAGS
        if not self.thinking and begin in self._template and answer.lstrip().startswith(begin) and end in answer:
            raise DataError(
                f"the answer begins with a block of thinking ({begin}), and model.thinking is off; set "
                "model.thinking=true, or remove the block"
            )
        opening, closing = self._opening
        hidden = self._hide("assistant", answer)
        if opening and closing in hidden:
            hidden = hidden.strip().removeprefix(opening).lstrip("\n")
        elif opening:
            hidden = f"\n{closing}\n\n{hidden}"
        # Some templates rewrite earlier turns once an answer follows; the turn itself is then answer + end.
        rewrites = bool(opening) or not full.startswith(prompt)
        ids = self._encode(hidden if rewrites else full[len(prompt) :])
        stop = next((place for place, id in enumerate(ids) if id in self.stop_ids), None)
        return [*ids, self.end_id] if stop is None else ids[: stop + 1]

    @cached_property
    def user_turn(self) -> tuple[list[int], int]:
        """Ids that open a chat's first user turn, for a model to go on with, and the id that ends it in the template.
        Raises `ModelError` for a template that ends it with none: nobody could tell a whole turn from a cut one."""
        text = self._render([{"role": "user", "content": _QUESTION}], generate=False)
        opening, _, after = text.rpartition(_QUESTION)
        end = self._marker_in(after)
        if end is None:
            raise ModelError(
                "distill.rehearsal.prompts=self: the chat template ends a user's turn with no token of its own, so "
                "that no end of a prompt could be told; name a file or data set with prompts"
            )
        # A space would be a part of the first word's token.
        return self._encode(opening.rstrip(" ")), end

    def user_text(self, ids: Sequence[int]) -> str:
        """What the model wrote as a user's turn, without special tokens, the one that ends it included."""
        ids = list(ids[:-1] if ids and ids[-1] in (*self.stop_ids, self.user_turn[1]) else ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def content(self, text: str) -> list[int]:
        """Ids of a text outside of any template. Raises `DataError`."""
        return self._encode(self._hide("user", text))

    def text(self, ids: Sequence[int]) -> str:
        """What the model wrote, without the token on which it stopped, other special tokens and its thinking."""
        ids = list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        # Some models mark their thinking with special tokens.
        written = self._opening[0] + str(self.tokenizer.decode(ids))
        # What looks like thinking later on is a part of the answer.
        if not begins_with_thinking(written):
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
        answer = without_thinking(written)
        for special in set(ids) & set(self.tokenizer.all_special_ids):
            answer = answer.replace(self._markers.get(special, ""), "")
        return answer

    def difference(self) -> str | None:
        """How generation config, template and tokenizer disagree about the end of a turn, in one line; none if not."""
        if not self._named or self.end_id in self._named:
            return None
        named = ", ".join(map(self._shown, self._named))
        return (
            f"the chat template ends a turn with {self._shown(self.end_id)}, the generation config stops on {named}; "
            "this run stops on all of them, and a server of the trained model needs the first in "
            "generation_config.json (eos_token_id) as well"
        )

    def summary(self) -> str:
        """On what generation stops and whether the model thinks, in one line."""
        stops = ", ".join(map(self._shown, self.stop_ids))
        known = self._has_switch or self._opening[0]
        mode = ("on" if self.thinking else "off") if known else "the template knows no such mode"
        day = f"; date: {self._midnight:%Y-%m-%d}" if "strftime_now" in self._template else ""
        return f"Generation stops on {stops}. Thinking: {mode}{day}."

    @property
    def _has_switch(self) -> bool:
        return any(re.search(pattern, self._template) for pattern in _SWITCHES.values())

    # Contents as text

    def _is_marker(self, text: str) -> bool:
        """An added token that is not special is a marker if the template writes it or it looks like one. Others (runs
        of spaces, tags of HTML) are the tokenizer's way to write that text."""
        return not text.isspace() and (text in self._template or re.fullmatch(r"<[|｜].*[|｜]>", text) is not None)

    def _hide(self, role: str, content: str) -> str:
        """`content` with the characters of all markers' texts in it shifted into a private-use plane."""
        kept = _TAGS if self.thinking and role == "assistant" else ()
        return self._marker.sub(lambda m: m.group() if m.group() in kept else _shifted(m.group(), _HIDDEN), content)

    def _encode(self, hidden: str) -> list[int]:
        """Ids of a rendered text, in which what is hidden becomes text again. Raises `DataError`."""
        ids = self._ids(hidden)
        if self._size is not None and max(ids, default=0) >= self._size:
            raise DataError(
                f"the tokenizer writes {self._shown(max(ids))}, and the model has {self._size} tokens; resize its "
                "embeddings (resize_token_embeddings), or use the tokenizer that it was trained with"
            )
        return ids

    def _ids(self, hidden: str) -> list[int]:
        # The template writes every special token itself.
        marker = self._hidden.search(hidden)
        if marker is None:
            return list(self.tokenizer.encode(hidden, add_special_tokens=False))
        refusal = (
            f"the text names the marker {_shifted(marker.group(), -_HIDDEN)}, which this tokenizer cannot write as "
            "text; remove it"
        )
        if not self.tokenizer.is_fast:
            raise DataError(f"{refusal}, or give the model folder a fast tokenizer (tokenizer.json)")
        encoding = self.tokenizer(hidden, add_special_tokens=False, return_offsets_mapping=True)
        ids, text, last = [], "", 0
        for id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if id in self._markers:
                ids.append(id)
                text += hidden[last:start] + _SENTINEL
                last = end
        found, own = self._textual
        seen = self._hidden.sub(lambda match: _shifted(match.group(), -_HIDDEN), text + hidden[last:])
        written = [own.get(id, id) for id in found.encode(seen, add_special_tokens=False).ids]
        if any(id in self._markers for id in written) or written.count(-1) != len(ids):
            raise DataError(refusal)
        markers = iter(ids)
        return [next(markers) if id == -1 else id for id in written]

    @cached_property
    def _textual(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with a sentinel in the place of its markers; and what its added tokens' ids are in the
        original, -1 for the sentinel."""
        from tokenizers import AddedToken, Tokenizer

        backend: Any = getattr(self.tokenizer, "backend_tokenizer")  # noqa: B009 - of fast tokenizers alone
        state = json.loads(backend.to_str())
        markers = set(self._markers.values())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in markers]
        state["post_processor"] = state["truncation"] = state["padding"] = None
        textual = Tokenizer.from_str(json.dumps(state))
        textual.add_special_tokens([AddedToken(_SENTINEL, normalized=False)])
        own = {
            id: -1 if token.content == _SENTINEL else backend.token_to_id(token.content)
            for id, token in textual.get_added_tokens_decoder().items()
        }
        return textual, own

    # The template

    def _render(self, messages: Messages, generate: bool) -> str:
        """The chat as text, markers in contents hidden. Raises `DataError` for a chat that the template refuses."""
        # Their parameters have types of their own, and the others' are the template's.
        variables: dict[str, Any] = dict.fromkeys(_SWITCHES, self.thinking)
        hidden = [{**each, "content": self._hide(each["role"], each["content"])} for each in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                hidden,
                tokenize=False,
                add_generation_prompt=generate,
                strftime_now=self._midnight.strftime,
                **variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(each["role"] for each in messages)
            raise DataError(
                f"the model's chat template refuses a chat of {roles} ({first_line(error)}); change the row, or leave "
                "such rows out with data.on_bad_row=skip"
            ) from error
        assert isinstance(text, str)
        return text

    def _probed(self, where: str) -> int | None:
        """The token that the template writes after an assistant's content, if it writes one; everything that is wrong
        with the template raises `ModelError`."""
        question = [{"role": "user", "content": _QUESTION}]
        try:
            plain, prompt = (self._render(question, generate) for generate in (False, True))
            full = self._render([*question, {"role": "assistant", "content": _ANSWER}], generate=False)
        except DataError as error:
            cause = error.__cause__
            line = f" in line {cause.lineno}" if isinstance(cause, jinja2.TemplateSyntaxError) else ""
            what = "cannot be read" if line else "refuses a question and its answer"
            raise ModelError(
                f"{where}: its chat template {what} ({first_line(cause or error)}{line}); repair chat_template.jinja"
            ) from error
        if _QUESTION not in prompt or _QUESTION not in full or _ANSWER not in full:
            raise ModelError(
                f"{where}: its chat template leaves out what a user or the assistant says; repair chat_template.jinja"
            )
        before, _, after = full.rpartition(_ANSWER)
        if plain == prompt and before.startswith(prompt) and before[len(prompt) :].strip():
            raise ModelError(
                f"{where}: its chat template ignores add_generation_prompt, so that nothing opens the assistant's "
                f"turn; let it write {before[len(prompt) :]!r} where add_generation_prompt is true"
            )
        if block := open_block(prompt.rpartition(_QUESTION)[2]):
            if not self.thinking:
                raise ModelError(
                    f"{where}: its chat template opens a block of thinking ({block[0]}) before every answer, which "
                    "model.thinking=false cannot close; set model.thinking=true, or let the template write "
                    f"{block[0] + chr(10) * 2 + block[1]!r} there"
                )
            self._opening = block
        elif self.thinking and not self._has_switch:
            raise ModelError(f"{where}: its chat template cannot be told to think; leave out model.thinking")
        return self._marker_in(after)

    def _marker_in(self, after: str) -> int | None:
        """The token that the template writes `after` a content, before any text; none if it writes none."""
        for id in self.tokenizer.encode(after, add_special_tokens=False):
            if id in self._markers:
                return id
            if str(self.tokenizer.decode([id])).strip():
                break
        return None

    def _shown(self, id: int) -> str:
        return f"{self.tokenizer.convert_ids_to_tokens(id)} ({id})"


def _default_template(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """The template of a chat without tools."""
    if not tokenizer.chat_template:
        raise ModelError(f"{where}: the tokenizer has no chat template; raft-ray trains chat models")
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise ModelError(f"{where}: its chat templates are called {names}, and none is the default")
    return str(tokenizer.get_chat_template())


def _shifted(text: str, by: int) -> str:
    return "".join(chr(ord(character) + by) for character in text)
