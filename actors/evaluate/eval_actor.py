"""The evaluation's engine: one vLLM engine that answers the same questions as one model after the other.

The second turns of open questions come last, since the chat before them holds the model's own first answers.

Knows the questions, their chunks and how answers are scored; what is read off probabilities instead is
`actors.evaluate.score_actor`'s; which models are evaluated, and what is done with the scores, is
`actors.evaluate.evaluation`'s.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from actors.runtime.cluster import here, log_to_file
from raft_ray import models as sources
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.data import Row
from raft_ray.data.general import general_prompts
from raft_ray.evaluate import domain, ifeval
from raft_ray.evaluate.judged import Answered, chat_of, domain_cases, open_cases
from raft_ray.evaluate.length import length
from raft_ray.evaluate.mmlu import Mmlu, load_mmlu
from raft_ray.evaluate.open_questions import OpenQuestion, load_open_questions

CHUNK = 64
"""About how many prompts a call of the engine gets: enough to fill a CPU's batch, few enough to show progress."""


_Answer = tuple[str, list[int], bool]
"""Text, its token ids, and whether the limit cut it off."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked."""

    domain: list[Row]
    ifeval: list[ifeval.IfevalPrompt]
    general: list[str]
    mmlu: Mmlu | None = None
    open: list[OpenQuestion] = field(default_factory=list)

    @property
    def choices(self) -> bool:
        """Every domain question names choices."""
        return bool(self.domain) and all(row.choices is not None for row in self.domain)

    @property
    def generated(self) -> bool:
        """Some of it is answered in writing."""
        return bool(self.domain or self.ifeval or self.general or self.open)

    def chats(self, config: Config) -> list[tuple[str, int, list[dict[str, str]], int]]:
        """`(kind, place within the kind, messages, token limit)`, long answers first so that chunks are alike.

        Of open questions the first turns.
        """
        limits = config.eval
        chats = [("ifeval", i, _chat(p.prompt), limits.ifeval_max_new_tokens) for i, p in enumerate(self.ifeval)]
        chats += [("general", i, _chat(text), limits.general_max_new_tokens) for i, text in enumerate(self.general)]
        chats += [("domain", i, row.messages, limits.domain_max_new_tokens) for i, row in enumerate(self.domain)]
        chats += [("open", i, chat_of(one, []), limits.open_max_new_tokens) for i, one in enumerate(self.open)]
        return sorted(chats, key=lambda chat: -chat[3])


def questions(config: Config, test_rows: list[Row] | None) -> Questions:
    """The seeded subsets that `eval.*` asks for. Raises `ConfigError` or `DataError` before anything starts."""
    rows = subset(test_rows or [], config.eval.domain_rows, config.run.seed)
    general = subset(general_prompts(config.eval.general), config.eval.general_rows, config.run.seed)
    mmlu = None
    if config.eval.mmlu is not None:
        mmlu = load_mmlu(config.eval.mmlu, config.eval.mmlu_rows, config.run.seed, config.eval.mmlu_shots)
    asked = load_open_questions(config.eval.open) if config.eval.open is not None else []
    return Questions(
        rows,
        ifeval.load_prompts(config.eval.ifeval_rows, config.run.seed),
        general,
        mmlu,
        subset(asked, config.eval.open_rows, config.run.seed),
    )


class EvalActor:
    """One engine that answers `questions` for one model after the other, and scores the answers."""

    def __init__(self, folder: str, config: Config, asked: Questions) -> None:
        self.folder, self.config, self.asked = folder, config, asked

    def where(self) -> str:
        """This process, for messages."""
        return f"EvalActor on node {here()} (pid {os.getpid()})"

    def start(self) -> list[int]:
        """Tokenise the questions and start the engine. Returns how many questions each chunk has."""
        from actors.engine.vllm_engine import Engine

        log_to_file(Path(self.config.run.dir), "evaluate")
        if self.asked.ifeval:
            ifeval.check()
        folder = sources.resolve(self.folder)
        model = self.config.model
        self.chat = sources.load_chat(folder, model)
        self.chats = self.asked.chats(self.config)
        limit = sources.model_context(folder, model)
        self.prompts = [self.chat.prompt(messages) for _, _, messages, _ in self.chats]
        self.second = [place for place, question in enumerate(self.asked.open) if len(question.turns) > 1]
        # No longer than needed: the KV cache must hold one whole context.
        needed = [len(ids) + chat[3] for ids, chat in zip(self.prompts, self.chats, strict=True)]
        for place in self.second:
            chat = chat_of(self.asked.open[place], [""])
            # The first answer, decoded and read again, may have more tokens than it was written in: twice as much room.
            needed.append(len(self.chat.prompt(chat)) + 3 * self.config.eval.open_max_new_tokens)
        self.context = context = min(limit, max(needed))
        self.limits = [min(chat[3], context - len(ids)) for ids, chat in zip(self.prompts, self.chats, strict=True)]
        self.engine = Engine(folder, model, self.config.rollout, context=context)
        self.loaded = self.folder
        self.chunks = _equal_parts([place for place, room in enumerate(self.limits) if room > 0])
        self.second_chunks = _equal_parts(self.second)
        return [len(chunk) for chunk in (*self.chunks, *self.second_chunks)]

    def load(self, folder: str) -> None:
        """Go on as the model in `folder`."""
        if folder != self.loaded:
            self.engine.load_weights(sources.resolve(folder))
            self.loaded = folder
        # A prompt that leaves no room in the context stays unanswered, which counts as wrong and cut off.
        self.answers: list[_Answer] = [("", [], True)] * len(self.chats)
        self.second_answers: dict[int, _Answer] = dict.fromkeys(self.second, ("", [], True))
        self.second_without_room = 0

    def answer(self, chunk: int) -> None:
        """Answer one chunk of the questions. Chunks are in order: those of second turns need the first answers."""
        announce("evaluate", "answering", chunk)
        if chunk >= len(self.chunks):
            self._answer_second(self.second_chunks[chunk - len(self.chunks)])
            return
        places = self.chunks[chunk]
        answers = self._generate([self.prompts[place] for place in places], [self.limits[place] for place in places])
        for place, answer in zip(places, answers, strict=True):
            self.answers[place] = answer

    def _answer_second(self, places: list[int]) -> None:
        first = self._places("open")
        prompts: dict[int, list[int]] = {}
        for place in places:
            chat = chat_of(self.asked.open[place], [self.answers[first[place]][0]])
            ids = self.chat.prompt(chat)
            if len(ids) < self.context:
                prompts[place] = ids
            else:
                self.second_without_room += 1
        if not prompts:
            return
        wanted = self.config.eval.open_max_new_tokens
        limits = [min(wanted, self.context - len(ids)) for ids in prompts.values()]
        self.second_answers.update(zip(prompts, self._generate(list(prompts.values()), limits), strict=True))

    def _generate(self, prompts: list[list[int]], limits: list[int]) -> list[_Answer]:
        completions = self.engine.generate(
            prompts, max_new_tokens=limits, temperature=self.config.eval.temperature, seed=self.config.run.seed
        )
        texts = [self.chat.text(one.token_ids) for one in completions]
        return [(text, one.token_ids, one.truncated) for text, one in zip(texts, completions, strict=True)]

    def measure(self) -> dict[str, Any]:
        """The model's part of `eval.json` that its answers tell; `domain` holds a verdict on each question, by
        measure."""
        start = time.perf_counter()
        asked = self.asked
        domain_texts, ifeval_texts, general_texts = (
            [self.answers[place][0] for place in self._places(kind)] for kind in ("domain", "ifeval", "general")
        )
        result: dict[str, Any] = {"domain": None, "ifeval": None, "length": None}
        result |= {"answers": [], "general_answers": [], "open_answers": []}
        if asked.domain:
            _, correct = domain.accuracy(domain_texts, [row.answers for row in asked.domain])
            pairs = zip(domain_texts, asked.domain, strict=True)
            result["domain"] = {
                "contains": correct,
                "exact": [domain.exact(text, row.answers) for text, row in pairs],
            }
            result["answers"] = [
                {"prompt": row.prompt, "gold": row.answer, "answer": text, "correct": right}
                for row, text, right in self._shown(list(zip(asked.domain, domain_texts, correct, strict=True)))
            ]
        if asked.ifeval:
            result["ifeval"] = ifeval.score(asked.ifeval, ifeval_texts)
        if asked.general:
            general = [self.answers[place] for place in self._places("general")]
            result["length"] = length(
                general_texts, [len(ids) for _, ids, _ in general], [cut for _, _, cut in general]
            )
            result["general_answers"] = [
                {"prompt": prompt, "answer": text}
                for prompt, text in self._shown(list(zip(asked.general, general_texts, strict=True)))
            ]
        # Without what judges say of them, who come later.
        result["open_answers"] = [
            {
                "turns": [
                    {"prompt": prompt, "reference": reference, "answer": text}
                    for prompt, reference, text in zip(question.turns, question.references, texts, strict=True)
                ]
            }
            for question, texts in self._shown(list(zip(asked.open, self._open_texts(), strict=True)))
        ]
        result["too_long"] = {
            kind: sum(self.limits[place] <= 0 for place in self._places(kind))
            for kind in ("domain", "ifeval", "general", "open")
        }
        result["too_long"]["open"] += self.second_without_room
        result["seconds"] = {"score": time.perf_counter() - start}
        return result

    def general_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Prompt ids and response ids of the general prompts, as sampled."""
        return [(self.prompts[place], self.answers[place][1]) for place in self._places("general")]

    def answered(self) -> Answered:
        """The answers that judges read."""
        domain_texts = [self.answers[place][0] for place in self._places("domain")]
        return Answered(domain_cases(self.asked.domain, domain_texts), open_cases(self.asked.open, self._open_texts()))

    def _open_texts(self) -> list[list[str]]:
        """The answers to each open question, one a turn."""
        first = [self.answers[place][0] for place in self._places("open")]
        return [
            [text, self.second_answers[place][0]] if place in self.second_answers else [text]
            for place, text in enumerate(first)
        ]

    def stop(self) -> None:
        """End this process, and the engine with it."""
        ray.actor.exit_actor()

    def _shown(self, answers: list[Any]) -> list[Any]:
        """Those that the report shows: the same questions for every model."""
        return subset(answers, self.config.eval.samples, self.config.run.seed)

    def _places(self, kind: str) -> list[int]:
        """Where a kind's questions lie among `chats`, in the kind's own order."""
        places = {chat[1]: place for place, chat in enumerate(self.chats) if chat[0] == kind}
        return [places[index] for index in sorted(places)]


def subset(items: list[Any], count: int | None, seed: int) -> list[Any]:
    """At most `count` items, drawn with `seed`, in their own order."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]


def _equal_parts(places: list[int]) -> list[list[int]]:
    """Chunks: a small last one would run at a fraction of the speed."""
    size = math.ceil(len(places) / max(1, round(len(places) / CHUNK)))
    return [places[start : start + size] for start in range(0, len(places), size)] if places else []


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
