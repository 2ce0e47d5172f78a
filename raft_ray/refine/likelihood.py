"""How likely a model finds answers: the mean log-likelihood a token, in nats, that `raft_ray.refine.gap` is about.

Knows nothing about Ray or about how rows are refined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raft_ray.errors import DataError
from raft_ray.models.head import Head, Pair
from raft_ray.models.likelihood import log_likelihoods
from raft_ray.models.padding import micro_batches
from raft_ray.models.prompts import PromptEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Likelihood:
    """Log-likelihoods of answers under a model.

    Args:
        model: the original model, in evaluation mode.
        encoder: its chat template and context; with a teacher template, fused answers are read in the teacher's place
            too.
        tokens: padded tokens a forward pass; also bounds the hidden states that exist at one time.
        chunk: positions whose logits exist at one time.

    Raises `ModelError` for a model without a head, or whose logits are made in an unknown way.
    """

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, *, tokens: int = 4096, chunk: int = 256) -> None:
        self._model = model
        self._encoder = encoder
        self._tokens = tokens
        self._chunk = chunk
        self._head = Head.of(model).in_float32()

    def measure(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the `COLUMNS` of `raft_ray.refine.gap` to rows of its `VALUES_SCHEMA`, in order.

        A text that a row repeats is read once.
        """
        pairs: list[Pair] = []
        places: dict[tuple[int, str], int] = {}
        shown: dict[int, int] = {}
        for number, row in enumerate(rows):
            prompt = self._encoder.prompt(row["messages"])
            for text in {row["answer"], row["rewrite"], row["fused"]} - {None, ""}:
                answer = self._encoder.answer(row["messages"], text)
                if len(prompt) + len(answer) <= self._encoder.context:
                    places[number, text] = len(pairs)
                    pairs.append((prompt, answer))
            if pair := self._conditioned(row):
                shown[number] = len(pairs)
                pairs.append(pair)
        found = self.score(pairs)

        def value(number: int, text: str | None) -> float | None:
            place = places.get((number, text or ""))
            return None if place is None else found[place]

        return [
            {
                "row": row["row"],
                "accepted": row["accepted"],
                "gold": value(number, row["answer"]),
                "rewrite": value(number, row["rewrite"]),
                "fused": value(number, row["fused"]),
                "conditioned": found[shown[number]] if number in shown else None,
            }
            for number, row in enumerate(rows)
        ]

    def _conditioned(self, row: dict[str, Any]) -> Pair | None:
        """The teacher's prompt and the fused answer; none without a template, or where they do not fit."""
        if self._encoder.teacher_template is None or not row["fused"]:
            return None
        answer = self._encoder.answer(row["messages"], row["fused"])
        roomy = replace(self._encoder, max_new_tokens=len(answer))
        try:
            return roomy.teacher_prompt(row["messages"], row["fused"]), answer
        except DataError:
            return None

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """The mean log-likelihood a token, in nats, of each `(prompt ids, answer ids)`."""
        found = [math.nan] * len(pairs)
        for group in micro_batches([len(prompt) + len(answer) for prompt, answer in pairs], self._tokens):
            chosen = [pairs[place] for place in group]
            totals = log_likelihoods(self._model, chosen, tokens=self._tokens, chunk=self._chunk, head=self._head)
            for place, total in zip(group, totals, strict=True):
                found[place] = total / len(pairs[place][1])
        return found
