"""The evaluation's engine: one vLLM engine that answers the same questions as one model after the other.

Knows the questions, their chunks and how answers are scored; what is read off probabilities instead is
`actors.score_actor`'s; which models are evaluated, and what is done with the scores, is `actors.evaluate`'s.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.cluster import here, log_to_file
from raft_ray import models as sources
from raft_ray.config import Config
from raft_ray.data import Row
from raft_ray.evaluate import domain, ifeval
from raft_ray.evaluate.length import length
from raft_ray.evaluate.mmlu import Mmlu, load_mmlu
from raft_ray.general import general_prompts
from raft_ray.prompts import PromptEncoder

CHUNK = 64
"""About how many prompts a call of the engine gets: enough to fill a CPU's batch, few enough to show progress."""


@dataclass(frozen=True)
class Questions:
    """What every model is asked."""

    domain: list[Row]
    ifeval: list[ifeval.IfevalPrompt]
    general: list[str]
    mmlu: Mmlu | None = None

    @property
    def choices(self) -> bool:
        """Every domain question names choices."""
        return bool(self.domain) and all(row.choices is not None for row in self.domain)

    @property
    def generated(self) -> bool:
        """Some of it is answered in writing."""
        return bool(self.domain or self.ifeval or self.general)

    def chats(self, config: Config) -> list[tuple[str, int, list[dict[str, str]], int]]:
        """`(kind, place within the kind, messages, token limit)`, long answers first so that chunks are alike."""
        limits = config.eval
        chats = [("ifeval", i, _chat(p.prompt), limits.ifeval_max_new_tokens) for i, p in enumerate(self.ifeval)]
        chats += [("general", i, _chat(text), limits.general_max_new_tokens) for i, text in enumerate(self.general)]
        chats += [("domain", i, row.messages, limits.domain_max_new_tokens) for i, row in enumerate(self.domain)]
        return sorted(chats, key=lambda chat: -chat[3])


def questions(config: Config, test_rows: list[Row] | None) -> Questions:
    """The seeded subsets that `eval.*` asks for. Raises `ConfigError` or `DataError` before anything starts."""
    rows = subset(test_rows or [], config.eval.domain_rows, config.run.seed)
    general = subset(general_prompts(config.eval.general), config.eval.general_rows, config.run.seed)
    mmlu = None
    if config.eval.mmlu is not None:
        mmlu = load_mmlu(config.eval.mmlu, config.eval.mmlu_rows, config.run.seed, config.eval.mmlu_shots)
    return Questions(rows, ifeval.load_prompts(config.eval.ifeval_rows, config.run.seed), general, mmlu)


class EvalActor:
    """One engine that answers `questions` for one model after the other, and scores the answers."""

    def __init__(self, folder: str, config: Config, asked: Questions) -> None:
        self.folder, self.config, self.asked = folder, config, asked

    def where(self) -> str:
        """This process, for messages."""
        return f"EvalActor on node {here()} (pid {os.getpid()})"

    def start(self) -> list[int]:
        """Tokenise the questions and start the engine. Returns how many questions each chunk has."""
        from actors.engine import Engine

        log_to_file(Path(self.config.run.dir), "evaluate")
        if self.asked.ifeval:
            ifeval.check()
        folder = sources.resolve(self.folder)
        model = self.config.model
        self.tokenizer = sources.load_tokenizer(folder, model)
        self.chats = self.asked.chats(self.config)
        limit = sources.model_context(folder, model)
        encoder = PromptEncoder(self.tokenizer, limit)
        self.prompts = [encoder.prompt(messages) for _, _, messages, _ in self.chats]
        # No longer than needed: the KV cache must hold one whole context.
        context = min(limit, max(len(ids) + chat[3] for ids, chat in zip(self.prompts, self.chats, strict=True)))
        self.limits = [min(chat[3], context - len(ids)) for ids, chat in zip(self.prompts, self.chats, strict=True)]
        rollout = self.config.rollout
        self.engine = Engine(
            folder,
            dtype=model.dtype,
            context=context,
            kv_cache_gib=rollout.kv_cache_gib,
            threads=rollout.threads,
            tensor_parallel=rollout.tensor_parallel,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            trust_remote_code=model.trust_remote_code,
            allow_pickle=model.allow_pickle,
        )
        self.loaded = self.folder
        readable = [place for place, room in enumerate(self.limits) if room > 0]
        # Equal parts: a small last chunk would run at a fraction of the speed.
        size = math.ceil(len(readable) / max(1, round(len(readable) / CHUNK)))
        self.chunks = [readable[start : start + size] for start in range(0, len(readable), size)] if readable else []
        return [len(chunk) for chunk in self.chunks]

    def load(self, folder: str) -> None:
        """Go on as the model in `folder`."""
        if folder != self.loaded:
            self.engine.load_weights(sources.resolve(folder))
            self.loaded = folder
        # A prompt that leaves no room in the context stays unanswered, which counts as wrong and cut off.
        self.answers: list[tuple[str, list[int], bool]] = [("", [], True)] * len(self.chats)

    def answer(self, chunk: int) -> None:
        """Answer one chunk of the questions."""
        places = self.chunks[chunk]
        completions = self.engine.generate(
            [self.prompts[place] for place in places],
            max_new_tokens=[self.limits[place] for place in places],
            temperature=self.config.eval.temperature,
            seed=self.config.run.seed,
        )
        for place, completion in zip(places, completions, strict=True):
            text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            self.answers[place] = (str(text), completion.token_ids, completion.truncated)

    def measure(self) -> dict[str, Any]:
        """The model's part of `eval.json` that its answers tell; `domain` holds a verdict on each question, by
        measure."""
        start = time.perf_counter()
        asked = self.asked
        domain_texts, ifeval_texts, general_texts = (
            [self.answers[place][0] for place in self._places(kind)] for kind in ("domain", "ifeval", "general")
        )
        result: dict[str, Any] = {"domain": None, "ifeval": None, "length": None, "answers": [], "general_answers": []}
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
        result["too_long"] = {
            kind: sum(self.limits[place] <= 0 for place in self._places(kind))
            for kind in ("domain", "ifeval", "general")
        }
        result["seconds"] = {"score": time.perf_counter() - start}
        return result

    def general_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Prompt ids and response ids of the general prompts, as sampled."""
        return [(self.prompts[place], self.answers[place][1]) for place in self._places("general")]

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


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
