"""Attention in float32 for a model that trains in bfloat16 on the CPU.

PyTorch's attention on the CPU does a matrix product a head and block; in bfloat16 each of these sets up a kernel and
allocates memory, in all threads at once. Backwards that takes longer than everything else in a step together where
sequences are short; in float32 it does not (docs/benchmarks.md). The result is the same, or rounded less.

Transformers is imported inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

SDPA_FLOAT32 = "sdpa_float32"
"""What transformers calls it (`attn_implementation`)."""


def attend_in_float32(model: PreTrainedModel) -> None:
    """Let every layer of `model` attend in float32. A model with another attention than PyTorch's is left as it is."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(SDPA_FLOAT32, _forward)
        AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
        model.set_attn_implementation(SDPA_FLOAT32)


def _forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Of [B, H, L, D] each, [B, L, H, D] in the query's dtype."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return out.to(query.dtype), None
