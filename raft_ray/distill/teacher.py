"""Answer-conditioned scoring: the frozen model's top-K log-probabilities of every response position (Eqs. 7-9).

Knows nothing about Ray or sampling: token ids in, targets out. Only `chunk_size` positions at a time have logits over
the whole vocabulary.

Shapes: B rows, L padded tokens (of a response: its own), n positions of all responses in one list, D hidden, V
vocabulary, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raft_ray.models.head import Head, decoder_of
from raft_ray.models.padding import micro_batches, pad_right

CHUNK = 128
"""Positions that have logits over the whole vocabulary at once."""

Target = tuple[np.ndarray, np.ndarray, float]
"""Of a response: `(ids [L, K] int32, log-probabilities at temperature 1 [L, K] float16, mean top-K mass)`."""


@dataclass(frozen=True)
class TeacherBatch:
    """Some rows for one forward pass of the teacher."""

    rows: list[int]
    """Which of the rows that were given."""
    input_ids: Tensor
    """[B, L] int64, padded on the right."""
    predicting: list[slice]
    """Of each, the positions that predict its response: the one before a token predicts it."""
    top_k: int
    """K; more than V gives all V."""


def make_teacher_batches(
    prompts: Sequence[Sequence[int]], responses: Sequence[np.ndarray], *, top_k: int, tokens: int
) -> list[TeacherBatch]:
    """The forward passes that `score` makes, with its arguments."""
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    return [
        TeacherBatch(
            group,
            pad_right([[*prompts[i], *responses[i].tolist()] for i in group]),
            [slice(len(prompts[i]) - 1, lengths[i] - 1) for i in group],
            top_k,
        )
        for group in micro_batches(lengths, tokens)
    ]


def targets(model: Any, batch: TeacherBatch, chunk_size: int = CHUNK) -> list[Target]:
    """The targets of a batch's rows, in its order; without gradients only. `model`: a transformers causal model in
    evaluation mode. `chunk_size`: positions that have logits at once."""
    decoder, head = decoder_of(model), Head.of(model)
    input_ids = batch.input_ids.to(head.weight.device)
    hidden_BLD = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
    spans = [hidden_BLD[b, span] for b, span in enumerate(batch.predicting)]
    top_ids, top_values = top_logprobs(torch.cat(spans), head, min(batch.top_k, head.rows), chunk_size)
    lengths = [len(span) for span in spans]
    return [
        (ids.numpy(), values.to(torch.float16).numpy(), float(values.exp().sum(-1).mean()))
        for ids, values in zip(top_ids.split(lengths), top_values.split(lengths), strict=True)
    ]


@torch.inference_mode()
def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[np.ndarray],
    *,
    top_k: int,
    tokens: int,
    chunk_size: int = CHUNK,
) -> list[Target]:
    """The teacher's targets for each response, given its own prompt and the response's ids verbatim.

    Args:
        model: a transformers causal model in evaluation mode.
        prompts: token ids that the teacher reads before each response.
        responses: [L] int32 each, L ≥ 1.
        top_k: K; more than V gives all V.
        tokens: padded tokens a forward pass.
        chunk_size: positions that have logits at once.
    """
    found: dict[int, Target] = {}
    for batch in make_teacher_batches(prompts, responses, top_k=top_k, tokens=tokens):
        found |= zip(batch.rows, targets(model, batch, chunk_size), strict=True)
    return [found[i] for i in range(len(responses))]


def top_logprobs(hidden_nD: Tensor, head: Head, kept: int, chunk_size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Of each position the `kept` likeliest tokens, [n, K] int32, and their log-probabilities, [n, K] float32; on the
    CPU."""
    ids, values = [], []
    for part in hidden_nD.split(chunk_size):
        logits = head.logits(part)
        top = logits.topk(kept, dim=-1)
        ids.append(top.indices.to(torch.int32).cpu())
        values.append((top.values - logits.logsumexp(-1, keepdim=True)).cpu())
    return torch.cat(ids), torch.cat(values)
