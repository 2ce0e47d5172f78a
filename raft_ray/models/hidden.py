"""What a model thinks before each token of a response: its last hidden states, for drift and log-likelihood.

The body works in the model's own dtype; what reads the hidden states takes `Head.of(model).in_float32()`, since a
bfloat16 head would add noise of the size of what is measured. Reads token ids only.

Shapes: B rows, L tokens, n response positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from raft_ray.models.head import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[list[int], list[int]]
"""Prompt ids and response ids."""


@torch.inference_mode()
def response_hidden(model: PreTrainedModel, sequences: Sequence[Pair], *, tokens: int = 4096) -> torch.Tensor:
    """The last hidden states that predict each response token: `[n, D]`, in the order of `sequences`.

    Forwards sequences of similar length together, right-padded, `tokens` at a time (at least one sequence).
    """
    body: Any = decoder_of(model)
    device = next(model.parameters()).device
    pad = model.config.get_text_config().pad_token_id or 0
    parts: list[torch.Tensor | None] = [None] * len(sequences)
    for batch in _batches([len(prompt) + len(response) for prompt, response in sequences], tokens):
        rows = [sequences[row][0] + sequences[row][1] for row in batch]
        width = max(map(len, rows))
        ids_BL = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        hidden_BLD = body(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        for place, row in enumerate(batch):
            prompt, response = sequences[row]
            # Position t predicts token t + 1.
            parts[row] = hidden_BLD[place, len(prompt) - 1 : len(prompt) + len(response) - 1].clone()
    return torch.cat([part for part in parts if part is not None])


def _batches(lengths: list[int], tokens: int) -> list[list[int]]:
    """Rows sorted by length and cut so that `rows * longest <= tokens`, or a single row."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[row] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
