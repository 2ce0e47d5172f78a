"""Sequences of different lengths as padded batches for a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def micro_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices grouped so that a padded group has at most `tokens` tokens (one long row stands alone), longest first."""
    group: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and longest * (len(group) + 1) > tokens:
            yield group
            group = []
        if not group:
            longest = lengths[index]
        group.append(index)
    if group:
        yield group


def pad_right(sequences: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """[B, L] int64. A causal model needs no mask for padding on the right: no real token ever sees it."""
    longest = max(len(s) for s in sequences)
    out = torch.full((len(sequences), longest), value, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        out[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
    return out
