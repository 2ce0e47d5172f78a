"""What the evaluation reads off a model's probabilities: drift, MMLU, and which of a domain question's choices it holds
most likely.

One transformers model after the other; the base's hidden states on its own answers stay, to be compared with. A plain
forward is exact and, on the CPU, three times as fast as vLLM's `prompt_logprobs`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.evaluate.eval_actor import Questions
from actors.runtime.cluster import here, log_to_file
from raft_ray import models as sources
from raft_ray.config import Config
from raft_ray.errors import ModelError
from raft_ray.evaluate.mmlu import LETTERS, lettered, scores

if TYPE_CHECKING:
    from raft_ray.models.likelihood import Choices, Chosen

CHUNK = 128
"""Multiple-choice questions a call: few enough to show progress and to stay within `teacher.timeout`."""

_BY_LETTER = "Answer with the letter of the right choice."


class ScoreActor:
    """Forwards one model after the other over the base's answers and the questions that have choices."""

    def __init__(self, folder: str, config: Config, asked: Questions) -> None:
        self.folder, self.config, self.asked = folder, config, asked

    def where(self) -> str:
        """This process, for messages."""
        return f"ScoreActor on node {here()} (pid {os.getpid()})"

    def start(self) -> list[int]:
        """Tokenise the questions. Returns how many questions each chunk has."""
        log_to_file(Path(self.config.run.dir), "evaluate")
        folder, model = sources.resolve(self.folder), self.config.model
        self.chat = sources.load_chat(folder, model)
        # model.context bounds an engine's memory, which this is not; benchmarks are asked within the model's own limit.
        self.limit = sources.model_context(folder, model)
        with contextlib.suppress(ModelError):  # Not every model states one.
            self.limit = max(self.limit, sources.model_context(folder, replace(model, context=None)))
        self.parts: dict[str, list[Choices]] = {}
        if self.asked.choices:
            self.parts.update(self._domain())
        if self.asked.mmlu is not None:
            for shots in self.config.eval.mmlu_shots:
                self.parts[f"mmlu {shots}"] = self._mmlu(shots)
        # Equal work in chunks: those of few-shot prompts are longer, but of the same kind.
        self.chunks = [
            (name, start, min(start + CHUNK, len(part)))
            for name, part in self.parts.items()
            for start in range(0, len(part), CHUNK)
        ]
        return [stop - start for _, start, stop in self.chunks]

    def load(self, folder: str) -> None:
        """Go on as the model in `folder`."""
        import torch

        # Before the next is loaded: two models need not fit at a time.
        self.model: Any = None
        model: Any = sources.load_model(sources.resolve(folder), self.config.model).eval()
        self.model = model.to("cuda") if torch.cuda.is_available() else model
        self.chosen: dict[str, list[Chosen]] = {name: [] for name in self.parts}

    def refer(self, pairs: list[tuple[list[int], list[int]]]) -> dict[str, float | int]:
        """Read the base's answers with the loaded model, the base. Returns its drift from itself: 0 over so many tokens
        and rows."""
        from raft_ray.evaluate.drift import Drift, Reference

        self.reference = Reference(self.model, pairs, tokens=self.config.teacher.tokens)
        tokens, rows = len(self.reference.hidden_nD), len(self.reference.sequences)
        return asdict(Drift(kl=0.0, kl_first=0.0, top1_agreement=1.0, tokens=tokens, rows=rows))

    def drift(self) -> dict[str, float | int]:
        """The drift of the loaded model."""
        return asdict(self.reference.compare(self.model))

    def choose(self, chunk: int) -> None:
        """Let the loaded model choose in one chunk of the questions."""
        from raft_ray.models.likelihood import choose

        name, start, stop = self.chunks[chunk]
        self.chosen[name] += choose(
            self.model, self.parts[name][start:stop], limit=self.limit, tokens=self.config.teacher.tokens
        )

    def measure(self) -> dict[str, Any]:
        """What the loaded model chose: `domain`, a verdict on each question by measure, and `mmlu`, by shots."""
        result: dict[str, Any] = {"domain": {}, "mmlu": None}
        for name, measures in (("choice", ("choice", "choice_norm")), ("letter", ("letter",))):
            if name in self.parts:
                for measure in measures:
                    by_length = measure == "choice_norm"
                    result["domain"][measure] = [
                        (one.by_length if by_length else one.by_sum) == question.right
                        for one, question in zip(self.chosen[name], self.parts[name], strict=True)
                    ]
        if self.asked.mmlu is not None:
            result["mmlu"] = {}
            for shots in self.config.eval.mmlu_shots:
                part = f"mmlu {shots}"
                result["mmlu"][f"{shots}-shot"] = {
                    **scores(self.asked.mmlu.test, [one.by_sum for one in self.chosen[part]]),
                    "shortened": sum(
                        len(question.context) + len(question.continuations[0]) > self.limit + 1
                        for question in self.parts[part]
                    ),
                }
        return result

    def stop(self) -> None:
        """End this process, and the models with it."""
        ray.actor.exit_actor()

    def _domain(self) -> dict[str, list[Choices]]:
        """The domain's questions with their choices as answers, and, where there are letters for all of them, with
        lettered choices and letters as answers."""
        from raft_ray.models.likelihood import Choices

        lettered_too = all(len(row.choices or []) <= len(LETTERS) for row in self.asked.domain)
        parts: dict[str, list[Choices]] = {"choice": [], **({"letter": []} if lettered_too else {})}
        for row in self.asked.domain:
            assert row.choices is not None
            right = row.choices.index(row.answer)
            letters = list(LETTERS[: len(row.choices)])
            asked = f"{lettered(row.prompt, row.choices)}\n{_BY_LETTER}"
            chats = {
                "choice": (row.messages, row.choices),
                "letter": ([*row.messages[:-1], {"role": "user", "content": asked}], letters),
            }
            for name in parts:
                messages, texts = chats[name]
                ids = [self.chat.content(text) for text in texts]
                parts[name].append(Choices(self.chat.prompt(messages), ids, [len(text) for text in texts], right))
        return parts

    def _mmlu(self, shots: int) -> list[Choices]:
        from raft_ray.models.likelihood import Choices, encode_pair

        assert self.asked.mmlu is not None
        questions = []
        for question in self.asked.mmlu.test:
            prompt = self.asked.mmlu.prompt(question, shots)
            pairs = [
                encode_pair(self.chat.tokenizer, prompt, f" {letter}") for letter in LETTERS[: len(question.choices)]
            ]
            ids = [continuation for _, continuation in pairs]
            questions.append(Choices(pairs[0][0], ids, [1] * len(ids), question.right))
        return questions
