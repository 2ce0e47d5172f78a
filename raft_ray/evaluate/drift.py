"""Drift: how far a fine-tuned model's next-token distribution has moved from the base's, on the base's own answers.

`KL(p_base ‖ p_tuned)` in nats, averaged over all tokens of the base's greedy answers to general prompts, the same at
each answer's first token, and the share of tokens where both put the same token first. Zero for an unchanged model. The
first token tells what the mean hides: a model that begins everything in one way goes on as the base does once the base
has begun. It reads token ids only and knows nothing about text, templates, vLLM or Ray.

The output head works on a chunk of positions at a time, so no `[tokens, V]` tensor larger than a chunk exists; body
in the model's own dtype, head and softmax in float32 (a bfloat16 head would add noise of the size of a small drift).

Shapes: n response positions, C positions of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from raft_ray.errors import ModelError
from raft_ray.models.head import Head, Pair, response_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Drift:
    """The distance of two models over some answers."""

    kl: float
    """KL(base ‖ tuned), nats a token."""
    kl_first: float
    """The same at the first token of each answer."""
    top1_agreement: float
    """Share of tokens where both models' most likely token is the same."""
    tokens: int
    """Response tokens, end-of-turn tokens included."""
    rows: int
    """Answers."""


def drift(
    base_model: PreTrainedModel,
    tuned_model: PreTrainedModel,
    sequences: Sequence[Pair],
    *,
    chunk: int = 256,
    tokens: int = 4096,
) -> Drift:
    """The drift of `tuned_model` on `sequences`, answers that the base model wrote.

    Args:
        sequences: `(prompt_ids, response_ids)`; every prompt has a token.
        chunk: positions whose logits exist at one time.
        tokens: tokens a forward pass (padded).

    Raises `ModelError` when the vocabularies differ, `ValueError` when there is no response token.
    """
    return Reference(base_model, sequences, tokens=tokens).compare(tuned_model, chunk=chunk)


class Reference:
    """The base model's side, computed once and compared with any number of tuned models.

    Holds the base's hidden states at the response positions and its head; the model itself is not kept.
    """

    def __init__(self, base_model: PreTrainedModel, sequences: Sequence[Pair], *, tokens: int = 4096) -> None:
        self.sequences = [pair for pair in sequences if pair[1]]
        if not self.sequences:
            raise ValueError("drift needs at least one response token")
        self.tokens = tokens
        self.head = Head.of(base_model).in_float32()
        self.hidden_nD = response_hidden(base_model, self.sequences, tokens=tokens)

    @torch.inference_mode()
    def compare(self, tuned_model: PreTrainedModel, *, chunk: int = 256) -> Drift:
        """The drift of `tuned_model`. Raises `ModelError` when its vocabulary is another."""
        head = Head.of(tuned_model).in_float32()
        if head.rows != self.head.rows:
            raise ModelError(f"drift: the tuned model has {head.rows} output tokens, its base {self.head.rows}")
        tuned_nD = response_hidden(tuned_model, self.sequences, tokens=self.tokens)
        divergences: list[torch.Tensor] = []
        agreed = 0
        for base_CD, tuned_CD in zip(self.hidden_nD.split(chunk), tuned_nD.split(chunk), strict=True):
            p_CV = self.head.logits(base_CD).log_softmax(-1)
            q_CV = head.logits(tuned_CD).log_softmax(-1)
            agreed += int((p_CV.argmax(-1) == q_CV.argmax(-1)).sum())
            # kl_div(input=log q, target=log p) is KL(p ‖ q), and 0 where p is 0.
            kl_C = torch.nn.functional.kl_div(q_CV, p_CV, reduction="none", log_target=True).sum(-1)
            divergences.append(kl_C.double().cpu())
        kl_n = torch.cat(divergences)
        count = len(kl_n)
        first = list(accumulate((len(response) for _, response in self.sequences[:-1]), initial=0))
        return Drift(float(kl_n.mean()), float(kl_n[first].mean()), agreed / count, count, len(self.sequences))
