"""What the evaluation reads off a model's probabilities: drift, MMLU, and which of a domain question's choices it holds
most likely.

One transformers model after the other; the base's hidden states on its own answers stay, to be compared with. A plain
forward is exact and, on the CPU, three times as fast as vLLM's `prompt_logprobs`.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from actors.evaluate.eval_actor import Questions
from actors.evaluate.process import Actor
from actors.runtime.cluster import log_to_file
from raft_ray import models as sources
from raft_ray.config import Config
from raft_ray.errors import ModelError
from raft_ray.evaluate.drift import Reference
from raft_ray.evaluate.mmlu import LETTERS, lettered, scores
from raft_ray.models.head import Pair
from raft_ray.models.likelihood import Choices, Chosen, choose, encode_pair

CHUNK_SIZE = 128
"""Multiple-choice questions per call: few enough to show progress and to stay within `teacher.timeout`."""

_BY_LETTER = "Answer with the letter of the right choice."


class ScoreActor(Actor):
    """Forwards one model after the other over the base's answers and the questions that have choices."""

    def __init__(self, folder: str, config: Config, asked: Questions) -> None:
        self.folder, self.config, self.asked = folder, config, asked

    def start(self) -> list[int]:
        """Tokenise the questions. Returns how many questions each batch has."""
        log_to_file(Path(self.config.run.dir), "evaluate")
        folder, model = self.folder, self.config.model
        self.chat = sources.load_chat(folder, model)
        # model.context bounds an engine's memory, which this is not; benchmarks are asked within the model's own limit.
        self.limit = sources.model_context(folder, model)
        with contextlib.suppress(ModelError):  # Not every model states one.
            self.limit = max(self.limit, sources.model_context(folder, replace(model, context=None)))
        self.parts = self._domain() if self.asked.choices else {}
        if self.asked.mmlu is not None:
            self.parts |= {f"{shots}-shot": self._mmlu(shots) for shots in self.config.eval.mmlu_shots}
        # Equal work in batches: those of few-shot prompts are longer, but of the same kind.
        self.batches = [
            (name, part[start : start + CHUNK_SIZE])
            for name, part in self.parts.items()
            for start in range(0, len(part), CHUNK_SIZE)
        ]
        return [len(questions) for _, questions in self.batches]

    def load(self, folder: str) -> None:
        """Go on as the model in `folder`."""
        # Before the next is loaded: two models need not fit at a time.
        self.model: Any = None
        model: Any = sources.load_model(folder, self.config.model).eval()
        self.model = model.to("cuda") if torch.cuda.is_available() else model
        self.chosen: dict[str, list[Chosen]] = {name: [] for name in self.parts}

    def refer(self, pairs: list[Pair]) -> dict[str, float | int]:
        """Read the base's answers with the loaded model, the base. Returns its drift from itself."""
        self.reference = Reference(self.model, pairs, tokens=self.config.teacher.tokens)
        return asdict(self.reference.unchanged())

    def drift(self) -> dict[str, float | int]:
        """The drift of the loaded model."""
        return asdict(self.reference.compare(self.model))

    def choose(self, batch: int) -> None:
        """Let the loaded model choose in one batch of the questions."""
        name, questions = self.batches[batch]
        self.chosen[name] += choose(self.model, questions, limit=self.limit, tokens=self.config.teacher.tokens)

    def measure(self) -> dict[str, Any]:
        """What the loaded model chose: `domain`, a verdict on each question by measure, and `mmlu`, by shots."""

        def right(part: str, by: str = "by_sum") -> list[bool]:
            pairs = zip(self.chosen[part], self.parts[part], strict=True)
            return [getattr(one, by) == question.right for one, question in pairs]

        verdicts: dict[str, list[bool]] = {}
        if "choice" in self.parts:
            verdicts |= {"choice": right("choice"), "choice_norm": right("choice", "by_length")}
        if "letter" in self.parts:
            verdicts["letter"] = right("letter")
        if self.asked.mmlu is None:
            return {"domain": verdicts, "mmlu": None}
        mmlu = {}
        for shots in self.config.eval.mmlu_shots:
            part = f"{shots}-shot"
            mmlu[part] = scores(self.asked.mmlu.test, [one.by_sum for one in self.chosen[part]])
            mmlu[part]["shortened"] = sum(
                len(question.context) + len(question.continuations[0]) > self.limit + 1 for question in self.parts[part]
            )
        return {"domain": verdicts, "mmlu": mmlu}

    def _domain(self) -> dict[str, list[Choices]]:
        """The domain's questions with their choices as answers, and, where there are letters for all of them, with
        lettered choices and letters as answers."""
        parts: dict[str, list[Choices]] = {"choice": [], "letter": []}
        if any(len(row.choices or []) > len(LETTERS) for row in self.asked.domain):
            del parts["letter"]
        for row in self.asked.domain:
            assert row.choices is not None
            asked = f"{lettered(row.prompt, row.choices)}\n{_BY_LETTER}"
            read = {
                "choice": (row.messages, row.choices),
                "letter": ([*row.messages[:-1], {"role": "user", "content": asked}], LETTERS[: len(row.choices)]),
            }
            for part, questions in parts.items():
                messages, texts = read[part]
                ids, lengths = [self.chat.content(text) for text in texts], [len(text) for text in texts]
                questions.append(Choices(self.chat.prompt(messages), ids, lengths, row.choices.index(row.answer)))
        return parts

    def _mmlu(self, shots: int) -> list[Choices]:
        assert self.asked.mmlu is not None
        questions = []
        for question in self.asked.mmlu.test:
            prompt, letters = self.asked.mmlu.prompt(question, shots), LETTERS[: len(question.choices)]
            pairs = [encode_pair(self.chat.tokenizer, prompt, f" {letter}") for letter in letters]
            questions.append(Choices(pairs[0][0], [ids for _, ids in pairs], [1] * len(pairs), question.right))
        return questions
