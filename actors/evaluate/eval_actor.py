"""The evaluation's engine: one vLLM engine that answers the same questions as one model after the other.

What is read off probabilities instead is `actors.evaluate.score_actor`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.evaluate.process import Actor
from actors.runtime.cluster import log_to_file
from raft_ray import models as sources
from raft_ray.announce import announce
from raft_ray.config import Config, EvalConfig
from raft_ray.config.references import shown
from raft_ray.data import Row
from raft_ray.data.general import general_prompts
from raft_ray.evaluate import domain, ifeval
from raft_ray.evaluate.answers import Answer, length
from raft_ray.evaluate.judged import Answered, chat_of, domain_cases, open_cases
from raft_ray.evaluate.kept import AnswerStore, Place, Written
from raft_ray.evaluate.mmlu import Mmlu, load_mmlu
from raft_ray.evaluate.open_questions import OpenQuestion, load_open_questions
from raft_ray.evaluate.subset import subset

CHUNK_SIZE = 64
"""About how many prompts a call of the engine gets: enough to fill a CPU's batch, few enough to show progress."""

KINDS = ("ifeval", "general", "domain", "open")
"""Of what is answered in writing: fields of `Questions`, and of `eval.KIND_max_new_tokens`."""


@dataclass(frozen=True)
class Turn:
    """One thing to answer in writing."""

    kind: str
    index: int
    """Within the kind."""
    limit: int
    """Tokens."""
    number: int = 0
    """1 for the second turn of an open question."""
    sample: int = 0

    @property
    def place(self) -> Place:
        return Place(self.kind, self.index, self.number, self.sample)


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
        return any(getattr(self, kind) for kind in KINDS)

    def turns(self, limits: EvalConfig) -> list[Turn]:
        """First turns, then second ones, which need the answers; long answers first, so that batches are alike."""
        turns = [
            Turn(kind, index, getattr(limits, f"{kind}_max_new_tokens"), number, sample)
            for kind in KINDS
            for index, question in enumerate(getattr(self, kind))
            for number in range(len(question.turns) if kind == "open" else 1)
            for sample in range(limits.ifeval_samples if kind == "ifeval" else 1)
        ]
        return sorted(turns, key=lambda turn: (turn.number, -turn.limit))

    def chat(self, turn: Turn, before: list[str]) -> list[dict[str, str]]:
        """The messages up to a turn that comes after the answers `before`."""
        if turn.kind == "domain":
            return self.domain[turn.index].messages
        if turn.kind == "open":
            return chat_of(self.open[turn.index], before)
        text = self.general[turn.index] if turn.kind == "general" else self.ifeval[turn.index].prompt
        return [{"role": "user", "content": text}]


def questions(config: Config, test_rows: list[Row] | None) -> Questions:
    """The seeded subsets that `eval.*` asks for. Raises `ConfigError` or `DataError` before anything starts."""
    asked, seed = config.eval, config.run.seed
    return Questions(
        subset(test_rows or [], asked.domain_rows, seed),
        ifeval.load_prompts(asked.ifeval_rows, seed),
        subset(general_prompts(asked.general), asked.general_rows, seed),
        load_mmlu(asked.mmlu, asked.mmlu_rows, seed, asked.mmlu_shots) if asked.mmlu is not None else None,
        subset(load_open_questions(asked.open), asked.open_rows, seed) if asked.open is not None else [],
    )


class EvalActor(Actor):
    """One engine that answers `questions` for one model after the other, and scores the answers."""

    def __init__(self, folder: str, config: Config, asked: Questions, kept: AnswerStore) -> None:
        self.folder, self.config, self.asked, self.kept = folder, config, asked, kept

    def start(self) -> list[int]:
        """Tokenise the questions and start the engine. Returns how many questions each batch has."""
        from actors.engine.vllm_engine import Engine

        log_to_file(Path(self.config.run.dir), "evaluate")
        if self.asked.ifeval:
            ifeval.check()
        folder, model = self.folder, self.config.model
        self.chat = sources.load_chat(folder, model)
        self.turns = self.asked.turns(self.config.eval)
        self.prompts = {turn: self.chat.prompt(self.asked.chat(turn, [""] * turn.number)) for turn in self.turns}
        # No longer than needed: the KV cache must hold one whole context. A first answer, decoded and read again, may
        # have more tokens than it was written in: twice as much room.
        needed = max(len(ids) + turn.limit * (3 if turn.number else 1) for turn, ids in self.prompts.items())
        self.context = min(sources.model_context(folder, model), needed)
        several = self.config.eval.ifeval_samples > 1
        self.engine = Engine(folder, model, self.config.rollout, context=self.context, own_seeds=several)
        self.loaded = self.folder
        first = [turn for turn in self.turns if turn.number == 0 and len(self.prompts[turn]) < self.context]
        # Samples apart: a call of the engine has one temperature.
        self.sampled = {turn for turn in first if turn.kind == "ifeval" and several}
        groups = [
            [turn for turn in first if turn not in self.sampled],
            [turn for turn in first if turn in self.sampled],
            [turn for turn in self.turns if turn.number],
        ]
        self.batches = [batch for group in groups for batch in _equal_parts(group)]
        return [len(batch) for batch in self.batches]

    def load(self, name: str, folder: str) -> None:
        """Go on as the model in `folder`, of which answers may be kept under `name`."""
        if folder != self.loaded:
            self.engine.load_weights(sources.resolve(folder, self.config.model))
            self.loaded = folder
        self.name, self.identity = name, sources.model_identity(folder)
        self.answers: dict[Turn, Answer] = {}
        self.known = self.kept.get(name)

    def answer(self, batch: int) -> None:
        """Answer one batch of the questions; batches are in order."""
        announce("evaluate", "answering", batch)
        prompts = {turn: self._prompt(turn) for turn in self.batches[batch]}
        prompts = {turn: ids for turn, ids in prompts.items() if len(ids) < self.context}
        if not prompts:
            return
        temperature, seed, seeds = self.config.eval.temperature, self.config.run.seed, None
        if prompts.keys() <= self.sampled:
            temperature = temperature or ifeval.SAMPLES_TEMPERATURE
            seeds = [ifeval.sample_seed(self.asked.ifeval[turn.index], turn.sample, seed) for turn in prompts]
        asked: dict[str, Any] = {
            "prompts": list(prompts.values()),
            "max_new_tokens": [min(turn.limit, self.context - len(ids)) for turn, ids in prompts.items()],
            "temperature": temperature,
            "seed": seed,
            "seeds": seeds,
        }
        written = self._written([turn.place for turn in prompts], asked)
        for turn in prompts:
            ids, truncated = written[turn.place]
            self.answers[turn] = Answer(self.chat.text(ids), ids, truncated)

    def _written(self, places: list[Place], asked: dict[str, Any]) -> dict[Place, Written]:
        """What the engine writes when it is asked, or has written before. Only a whole call is taken: which prompts it
        has decides how floating-point numbers are rounded."""
        model = [self.identity, self.context, self.chat.stop_ids, shown(self.config.model)]
        call = hashlib.sha256(json.dumps([model, places, asked]).encode()).hexdigest()
        known = self.known.pop(call, {})
        if known.keys() >= set(places):
            return known
        completions = self.engine.generate(**asked)
        written = {place: Written(one.token_ids, one.truncated) for place, one in zip(places, completions, strict=True)}
        self.kept.put(self.name, call, written)
        return written

    def unused(self) -> int:
        """Answers that were kept of the model and not taken: of other weights, questions or settings."""
        return sum(map(len, self.known.values()))

    def _prompt(self, turn: Turn) -> list[int]:
        if turn.number == 0:
            return self.prompts[turn]
        before = [self._answer(replace(turn, number=number)).text for number in range(turn.number)]
        return self.chat.prompt(self.asked.chat(turn, before))

    def measure(self) -> dict[str, Any]:
        """The model's part of `eval.json` that its answers tell; `domain` holds a verdict on each question, by measure,
        and `open_answers` lacks what judges say of them, who come later."""
        start = time.perf_counter()
        asked = self.asked
        result: dict[str, Any] = {"domain": None, "ifeval": None, "length": None, "answers": [], "general_answers": []}
        if asked.domain:
            pairs = list(zip(self._texts("domain"), asked.domain, strict=True))
            verdicts = {
                name: [right(text, row.answers) for text, row in pairs]
                for name, right in (("contains", domain.contains), ("exact", domain.exact))
            }
            result["domain"] = verdicts
            result["answers"] = [
                {"prompt": row.prompt, "gold": row.answer, "answer": text, "correct": right}
                for (text, row), right in self._shown(list(zip(pairs, verdicts["contains"], strict=True)))
            ]
        if asked.ifeval:
            samples = range(self.config.eval.ifeval_samples)
            result["ifeval"] = ifeval.score(asked.ifeval, *(self._texts("ifeval", sample) for sample in samples))
        if asked.general:
            given = [self._answer(turn) for turn in self._of("general")]
            result["length"] = length(given)
            result["general_answers"] = [
                {"prompt": prompt, "answer": one.text}
                for prompt, one in self._shown(list(zip(asked.general, given, strict=True)))
            ]
        result["open_answers"] = [
            {
                "turns": [
                    {"prompt": prompt, "reference": reference, "answer": text}
                    for prompt, reference, text in zip(question.turns, question.references, texts, strict=True)
                ]
            }
            for question, texts in self._shown(list(zip(asked.open, self._open_texts(), strict=True)))
        ]
        result["too_long"] = {kind: sum(turn not in self.answers for turn in self._of(kind)) for kind in KINDS}
        result["seconds"] = {"score": time.perf_counter() - start}
        return result

    def general_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Prompt ids and response ids of the general prompts, as sampled."""
        return [(self.prompts[turn], self._answer(turn).token_ids) for turn in self._of("general")]

    def answered(self) -> Answered:
        """The answers that judges read."""
        return {
            "domain": domain_cases(self.asked.domain, self._texts("domain")),
            "open": open_cases(self.asked.open, self._open_texts()),
        }

    def _open_texts(self) -> list[list[str]]:
        """The answers to each open question, one per turn."""
        texts: list[list[str]] = [[] for _ in self.asked.open]
        for turn in self._of("open"):
            texts[turn.index].append(self._answer(turn).text)
        return texts

    def _texts(self, kind: str, sample: int = 0) -> list[str]:
        return [self._answer(turn).text for turn in self._of(kind, sample)]

    def _answer(self, turn: Turn) -> Answer:
        return self.answers.get(turn, Answer())

    def _of(self, kind: str, sample: int = 0) -> list[Turn]:
        """A kind's turns, in the kind's own order."""
        turns = (turn for turn in self.turns if (turn.kind, turn.sample) == (kind, sample))
        return sorted(turns, key=lambda turn: (turn.index, turn.number))

    def _shown(self, answers: list[Any]) -> list[Any]:
        """Those that the report shows: the same questions for every model."""
        return subset(answers, self.config.eval.samples, self.config.run.seed)


def _equal_parts(turns: list[Turn]) -> list[list[Turn]]:
    """Batches of about the same size: a small last one would run at a fraction of the speed."""
    size = math.ceil(len(turns) / max(1, round(len(turns) / CHUNK_SIZE)))
    return [turns[start : start + size] for start in range(0, len(turns), size)] if turns else []
