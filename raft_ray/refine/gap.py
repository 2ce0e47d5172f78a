"""The compatibility gap: how likely the original model finds the answers that it is to be trained on.

The measure is the mean log-likelihood a token, in nats: of the answer's tokens and the end-of-turn token, given the
question in the chat template, under the original model. Gold answers are unlikely (they are not the model's words),
rewritten and fused ones should be likelier: closing this gap is what stage 1 is for.

Knows nothing about Ray or about how rows are refined. Body in the model's own dtype, head and softmax in float32.
Shapes: C positions of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from raft_ray.errors import DataError
from raft_ray.evaluate.drift import Head, Pair, response_hidden
from raft_ray.prompts import PromptEncoder
from raft_ray.refine.interval import Means
from raft_ray.teacher import micro_batches

COLUMNS = ["row", "messages", "answer", "rewrite", "accepted", "fused"]
"""What is read of a refined row."""

KINDS = ("gold", "rewrite", "fused")
VALUES_SCHEMA = pa.schema([("row", pa.int64()), ("accepted", pa.bool_()), *((kind, pa.float64()) for kind in KINDS)])
"""A row's mean log-likelihoods a token; null where the row has no such text, or where it does not fit the context."""

GAP = "_gap.json"
VALUES = "_gap.parquet"
"""Both in the refined folder; as with the summary, the underscore keeps them out of what reads it as one data set."""


class Likelihood:
    """Log-likelihoods of answers under a model.

    Args:
        model: the original model, in evaluation mode.
        encoder: its chat template and context.
        tokens: padded tokens a forward pass; also bounds the hidden states that exist at one time.
        chunk: positions whose logits exist at one time.

    Raises `ModelError` for a model without a head, or whose logits are made in an unknown way.
    """

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, *, tokens: int = 4096, chunk: int = 256) -> None:
        self._model = model
        self._encoder = encoder
        self._tokens = tokens
        self._chunk = chunk
        self._head = Head(model)

    def measure(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with `COLUMNS` to rows of `VALUES_SCHEMA`, in order. A text that a row repeats is read once."""
        pairs: list[Pair] = []
        places: dict[tuple[int, str], int] = {}
        for number, row in enumerate(rows):
            prompt = self._encoder.prompt(row["messages"])
            for text in {row["answer"], row["rewrite"], row["fused"]} - {None, ""}:
                answer = self._encoder.answer(row["messages"], text)
                if len(prompt) + len(answer) <= self._encoder.context:
                    places[number, text] = len(pairs)
                    pairs.append((prompt, answer))
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
            }
            for number, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """The mean log-likelihood a token, in nats, of each `(prompt ids, answer ids)`."""
        found = [math.nan] * len(pairs)
        for group in micro_batches([len(prompt) + len(answer) for prompt, answer in pairs], self._tokens):
            chosen = [pairs[place] for place in group]
            hidden_nD = response_hidden(self._model, chosen, tokens=self._tokens)
            labels_n = torch.tensor([token for _, answer in chosen for token in answer], device=hidden_nD.device)
            values: list[torch.Tensor] = []
            for hidden_CD, labels_C in zip(hidden_nD.split(self._chunk), labels_n.split(self._chunk), strict=True):
                logits_CV = self._head(hidden_CD)
                values.append(logits_CV.gather(-1, labels_C[:, None])[:, 0] - logits_CV.logsumexp(-1))
            lengths = [len(answer) for _, answer in chosen]
            for place, part in zip(group, torch.cat(values).double().split(lengths), strict=True):
                found[place] = float(part.mean())
        return found


class Gap:
    """What rows of `VALUES_SCHEMA` come to, taken in one after the other.

    Args:
        seed: of the bootstrap.
    """

    def __init__(self, seed: int) -> None:
        names = (*KINDS, "rewrite_minus_gold", "fused_minus_gold")
        self._names = [f"{part}.{name}" for part in ("all", "accepted") for name in names]
        self._means = Means(self._names, seed)
        self._rows = 0

    def add(self, values: pa.Table) -> None:
        """Take in some rows."""
        gold, rewrite, fused = (
            values[kind].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64) for kind in KINDS
        )
        accepted = values["accepted"].to_numpy(zero_copy_only=False).astype(bool)
        columns = np.stack([gold, rewrite, fused, rewrite - gold, fused - gold], axis=1)
        self._means.add(np.concatenate([columns, np.where(accepted[:, None], columns, np.nan)], axis=1))
        self._rows += values.num_rows

    def result(self) -> dict[str, Any]:
        """`rows`; and for `all` and for the `accepted` rows the intervals of each kind and of its rise over gold."""
        result: dict[str, Any] = {"rows": self._rows, "all": {}, "accepted": {}}
        for name, interval in self._means.intervals().items():
            part, column = name.split(".")
            result[part][column] = interval
        return result


def in_words(gap: dict[str, Any]) -> str:
    """Whether the gap shrank, in one sentence: the paired difference of fused and gold answers over all rows."""
    rise = gap["all"]["fused_minus_gold"]
    if not rise["n"]:
        return "The compatibility gap could not be measured: no row fits the model's context."
    if not gap["accepted"]["fused"]["n"]:
        return "The compatibility gap is as it was: no rewrite was accepted, so training uses the gold answers."
    if rise["low"] is None:
        return "The compatibility gap rests on a single row, which shows nothing."
    amount = f"{rise['mean']:+.3f} nats a token (95% interval {rise['low']:+.3f} to {rise['high']:+.3f})"
    change = f"fused answers against gold ones over the same {rise['n']:,} rows: {amount}"
    if rise["low"] > 0:
        return f"The compatibility gap shrank; {change}."
    if rise["high"] < 0:
        return f"The compatibility gap grew; {change}. The refined answers are further from the model than gold."
    return f"It is not shown that the compatibility gap shrank; {change}."


def read_gap(folder: Path) -> dict[str, Any] | None:
    """The measured gap of a refined folder, none where it was not measured. Raises `DataError` for a broken file."""
    path = folder / GAP
    if not path.exists():
        return None
    try:
        gap = json.loads(path.read_text(encoding="utf-8"))
        in_words(gap)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a measured gap ({type(error).__name__}: {error}); delete it") from error
    return gap
