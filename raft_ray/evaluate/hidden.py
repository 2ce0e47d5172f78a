"""What a model thinks before each token of a response: last hidden states, and the head that makes them logits.

Shared by drift and log-likelihood. Body in the model's own dtype, head and softmax in float32 (a bfloat16 head would
add noise of the size of what is measured). Reads token ids only; knows nothing about text, templates, vLLM or Ray.

Shapes: B rows, L tokens, n response positions, C positions of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from raft_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[list[int], list[int]]
"""Prompt ids and response ids."""


@torch.inference_mode()
def response_hidden(model: PreTrainedModel, sequences: Sequence[Pair], *, tokens: int = 4096) -> torch.Tensor:
    """The last hidden states that predict each response token: `[n, D]`, in the order of `sequences`.

    Forwards sequences of similar length together, right-padded, `tokens` at a time (at least one sequence).
    """
    body = model.base_model
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


class Head:
    """Hidden states `[C, D]` to float32 logits `[C, V]`, as the model itself computes them."""

    def __init__(self, model: PreTrainedModel) -> None:
        layer = model.get_output_embeddings()
        if layer is None:
            raise ModelError(f"{type(model).__name__} has no output head")
        self.weight_VD = layer.weight.detach().float()
        bias = getattr(layer, "bias", None)
        self.bias_V = bias.detach().float() if bias is not None else None
        config: Any = model.config.get_text_config()
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.rows = self.weight_VD.shape[0]
        self._check(model)

    def __call__(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        logits_CV = torch.nn.functional.linear(hidden_CD.float(), self.weight_VD, self.bias_V) * self.scale
        return logits_CV if self.softcap is None else self.softcap * torch.tanh(logits_CV / self.softcap)

    @torch.inference_mode()
    def _check(self, model: PreTrainedModel) -> None:
        """An architecture that does something else to its logits must not get a wrong number in silence."""
        ids_1L = torch.arange(min(8, self.rows), device=self.weight_VD.device)[None]
        own_LV = model(input_ids=ids_1L, use_cache=False).logits[0].float()
        ours_LV = self(model.base_model(input_ids=ids_1L, use_cache=False).last_hidden_state[0])
        if (own_LV - ours_LV).abs().max() > 0.05 * own_LV.abs().max().clamp(min=1.0):
            raise ModelError(f"{type(model).__name__} computes its logits in a way that is not known here")


def _batches(lengths: list[int], tokens: int) -> list[list[int]]:
    """Rows sorted by length and cut so that `rows * longest <= tokens`, or a single row."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[row] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
