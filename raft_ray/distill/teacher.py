"""Answer-conditioned scoring: the frozen model's top-K log-probabilities of every response position (Eqs. 7-9).

Knows nothing about Ray or sampling: token ids in, targets out. Only `chunk_size` positions at a time have logits over
the whole vocabulary.

Shapes: n positions of all responses in one list, D hidden, V vocabulary, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raft_ray.models.head import Head, decoder_of
from raft_ray.models.padding import micro_batches, pad_right

CHUNK = 128
"""Positions that have logits over the whole vocabulary at once."""


@torch.inference_mode()
def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[np.ndarray],
    *,
    top_k: int,
    tokens: int,
    chunk_size: int = CHUNK,
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """The teacher's targets for each response, given its own prompt and the response's ids verbatim.

    Args:
        model: a transformers causal model in evaluation mode.
        prompts: token ids that the teacher reads before each response.
        responses: [L] int32 each, L ≥ 1.
        top_k: K; more than V gives all V.
        tokens: padded tokens a forward pass.
        chunk_size: positions that have logits at once.

    Returns:
        For each response `(ids [L, K] int32, log-probabilities at temperature 1 [L, K] float16, mean top-K mass)`.
    """
    decoder, head = decoder_of(model), Head.of(model)
    device = head.weight.device
    kept = min(top_k, head.rows)
    results: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    for group in micro_batches(lengths, tokens):
        ids = pad_right([[*prompts[i], *responses[i].tolist()] for i in group]).to(device)
        hidden_BLD = decoder(input_ids=ids, use_cache=False).last_hidden_state
        # The position before a token predicts it.
        spans = [hidden_BLD[b, len(prompts[i]) - 1 : lengths[i] - 1] for b, i in enumerate(group)]
        top_ids, top_values = top_logprobs(torch.cat(spans), head, kept, chunk_size)
        start = 0
        for i in group:
            part = slice(start, start + len(responses[i]))
            start = part.stop
            values = top_values[part]
            mass = float(values.exp().sum(-1).mean())
            results[i] = (top_ids[part].numpy(), values.to(torch.float16).numpy(), mass)
    return [results[i] for i in range(len(responses))]


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
