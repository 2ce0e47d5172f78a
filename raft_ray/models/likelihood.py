"""How likely a model holds given continuations, and which of several choices that makes its answer.

The numbers are those of lm-eval's `loglikelihood`: the sum of the log-probabilities of a continuation's tokens after
its context, without an end-of-turn token; a context that is too long loses tokens from its left. It is not lm-eval's
`HFLM`, since that makes the logits of every position (measured on 16 MMLU questions with five examples and SmolLM2 on
one core: 27 s instead of 20 s, and 1.3 GiB more), and stage 1's gap needs mean log-likelihoods besides.

Shapes: n continuation positions, C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raft_ray.models.head import Head, Pair, response_hidden
from raft_ray.models.padding import micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Choices:
    """A question whose answer is one of several texts."""

    context: list[int]
    """Token ids before the choice."""
    continuations: list[list[int]]
    """Token ids of each choice, at least one."""
    characters: list[int]
    """Length of each choice's text, by which lm-eval's `acc_norm` divides."""
    right: int
    """Index of the right choice."""


@dataclass(frozen=True)
class Chosen:
    """What a model made of one question; the first of equals counts."""

    logprobs: list[float]
    """Log-likelihood of each choice, nats."""
    by_sum: int
    """The most likely choice (lm-eval's `acc`)."""
    by_length: int
    """The most likely choice per character (lm-eval's `acc_norm`)."""


def choose(model: PreTrainedModel, questions: Sequence[Choices], *, limit: int, tokens: int = 4096) -> list[Chosen]:
    """The model's choice for each question, in the questions' order. `limit`: tokens that the model reads; longer
    contexts are cut from the left. `tokens`: tokens per forward pass (padded)."""
    pairs = [(cut(question.context, ids, limit), ids) for question in questions for ids in question.continuations]
    found = iter(log_likelihoods(model, pairs, tokens=tokens))
    chosen = []
    for question in questions:
        logprobs = [next(found) for _ in question.continuations]
        by_length = [value / length for value, length in zip(logprobs, question.characters, strict=True)]
        chosen.append(Chosen(logprobs, logprobs.index(max(logprobs)), by_length.index(max(by_length))))
    return chosen


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    tokens: int = 4096,
    chunk_size: int = 256,
    head: Head | None = None,
) -> list[float]:
    """log p(continuation | context) of each pair of token ids, nats; both have at least one token.

    Args:
        tokens: tokens per forward pass (padded).
        chunk_size: positions whose logits exist at one time.
        head: the model's, where it was made before.
    """
    if not pairs:
        return []
    # The last token is only predicted, never read: pairs that differ in it alone have the same hidden states.
    groups: defaultdict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for place, (context, continuation) in enumerate(pairs):
        groups[len(context), (*context, *continuation[:-1])].append(place)
    hidden_nD = response_hidden(model, [pairs[places[0]] for places in groups.values()], tokens=tokens)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    start = 0
    for places in groups.values():
        size = len(pairs[places[0]][1])
        for place in places:
            positions += range(start, start + size)
            targets += pairs[place][1]
            owners += [place] * size
        start += size
    head = head or Head.of(model).in_float32()
    device = hidden_nD.device
    totals = torch.zeros(len(pairs), dtype=torch.float64)
    # Positions of a group lie side by side, so one that several pairs share is rarely computed twice.
    for part in range(0, len(positions), chunk_size):
        here = slice(part, part + chunk_size)
        distinct, inverse = torch.tensor(positions[here]).unique(return_inverse=True)
        logprobs_CV = head.logits(hidden_nD[distinct.to(device)]).log_softmax(-1)
        values = logprobs_CV[inverse.to(device), torch.tensor(targets[here], device=device)]
        totals.index_add_(0, torch.tensor(owners[here]), values.double().cpu())
    return totals.tolist()


def mean_log_likelihoods(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    tokens: int = 4096,
    chunk_size: int = 256,
    head: Head | None = None,
) -> list[float]:
    """As `log_likelihoods`, per token of the continuation; hidden states of `tokens` tokens exist at one time."""
    head = head or Head.of(model).in_float32()
    found = [0.0] * len(pairs)
    for places in micro_batches([len(context) + len(continuation) for context, continuation in pairs], tokens):
        totals = log_likelihoods(
            model, [pairs[place] for place in places], tokens=tokens, chunk_size=chunk_size, head=head
        )
        for place, total in zip(places, totals, strict=True):
            found[place] = total / len(pairs[place][1])
    return found


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Token ids of a plain text and of what follows it, split where lm-eval splits them: spaces at the end of the
    context belong to the continuation, and both are encoded together."""
    before = tokenizer.encode(context.rstrip())
    return before, tokenizer.encode(context + continuation)[len(before) :]


def cut(context: list[int], continuation: list[int], limit: int) -> list[int]:
    """The context without what a model that reads `limit` tokens cannot read (the last token is only predicted). Raises
    `ValueError` where not even one token is left."""
    room = limit + 1 - len(continuation)
    if room < 1:
        raise ValueError(f"a continuation of {len(continuation)} tokens leaves no context within {limit} tokens")
    return context[-room:]
