"""From token ids to last hidden states, and from these to logits: `softcap(scale · (hidden @ weight.T + bias))`.

The losses, the teacher and the evaluation make logits a few positions at a time, never a [batch, tokens, vocabulary]
tensor, so they cannot call the model's own forward. This is the one place that knows how a model makes its logits, and
`check_head` compares it with that forward: an architecture that does something else is refused.

Shapes: n positions of all rows in one list, B rows, L tokens, D hidden size, K chosen tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raft_ray.errors import ModelError
from raft_ray.models.architectures import LOGIT_FACTORS, SOFT_CAPS
from raft_ray.models.padding import micro_batches, pad_right

Pair = tuple[list[int], list[int]]
"""Prompt ids and response ids."""


@dataclass(frozen=True)
class Head:
    """How a model makes logits; its tensors are the model's own."""

    weight: Tensor
    """[V, D]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a transformers causal model. Raises `ModelError` for a model without one."""
        layer = model.get_output_embeddings()
        if layer is None or getattr(layer, "weight", None) is None:
            raise ModelError(f"{type(model).__name__}: it has no output head; raft-ray trains causal language models")
        text = model.config.get_text_config()
        scale = 1.0
        for key, power in LOGIT_FACTORS.items():
            scale *= float(getattr(text, key, None) or 1.0) ** power
        caps = [cap for key in SOFT_CAPS if (cap := getattr(text, key, None))]
        return cls(layer.weight, getattr(layer, "bias", None), scale, float(caps[0]) if caps else None)

    def in_float32(self) -> Head:
        """The same in float32, apart from the model: for measurements in which bfloat16's rounding would show."""
        bias = None if self.bias is None else self.bias.detach().float()
        return replace(self, weight=self.weight.detach().float(), bias=bias)

    @property
    def rows(self) -> int:
        """V."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, D] to float32 logits [n, V]; the product is in the weight's dtype."""
        return self.shaped(nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float())

    def chosen(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """[n, D] and token ids [n, K] to the float32 logits [n, K] of those tokens; memory n · K · D."""
        logits = torch.bmm(self.weight[ids], hidden.unsqueeze(-1)).squeeze(-1)
        return self.shaped((logits if self.bias is None else logits + self.bias[ids]).float())

    def shaped(self, product: Tensor) -> Tensor:
        """The logits that `hidden @ weight.T + bias` becomes."""
        logits = product if self.scale == 1 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of `shaped`, by its value."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap) ** 2)


def decoder_of(model: Any) -> Any:
    """The part of a causal model that gives last hidden states."""
    found = model.get_decoder()
    # Some architectures name themselves.
    return model.model if found is model else found


def last_hidden(model: Any, ids_BL: Tensor) -> Tensor:
    """[B, L, D] of a causal model's last layer."""
    hidden: Tensor = decoder_of(model)(input_ids=ids_BL, use_cache=False).last_hidden_state
    return hidden


@torch.inference_mode()
def response_hidden(model: Any, sequences: Sequence[Pair], *, tokens: int = 4096) -> Tensor:
    """The last hidden states that predict each response token: `[n, D]`, in the order of `sequences`. The body works in
    the model's own dtype; what measures the hidden states takes `Head.of(model).in_float32()`, since a bfloat16 head
    would add noise of the size of what is measured. `tokens`: of a forward pass, padding included (at least one
    sequence)."""
    device = next(model.parameters()).device
    parts: dict[int, Tensor] = {}
    for batch in micro_batches([len(prompt) + len(response) for prompt, response in sequences], tokens):
        ids_BL = pad_right([sequences[row][0] + sequences[row][1] for row in batch]).to(device)
        for hidden_LD, row in zip(last_hidden(model, ids_BL), batch, strict=True):
            prompt, response = sequences[row]
            # Position t predicts token t + 1.
            parts[row] = hidden_LD[len(prompt) - 1 : len(prompt) + len(response) - 1].clone()
    return torch.cat([parts[row] for row in range(len(sequences))])


@torch.inference_mode()
def check_head(model: Any) -> None:
    """Refuse a model whose logits `Head` does not make as the model itself does, to rounding. Raises `ModelError`."""
    head = Head.of(model)
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(head.rows, (1, 16), generator=seeded).to(head.weight.device)
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    ours = head.logits(last_hidden(model, ids)[0])
    # Two units in the last place of the dtype in which the model works, of the largest logit of a position.
    allowed = 2 * torch.finfo(head.weight.dtype).eps * own.abs().amax(-1, keepdim=True).clamp(min=1e-3)
    if not own.isfinite().all():
        raise ModelError(f"{type(model).__name__}: its logits are not finite numbers; its weights are damaged")
    if own.shape != ours.shape or not ((own - ours).abs() <= allowed).all():
        ratio = float((own / ours)[ours != 0].median()) if own.shape == ours.shape else float("nan")
        raise ModelError(
            f"{type(model).__name__}: it changes its logits after the output head in a way that is not known here "
            f"(they are {ratio:.4g} times ours); models with a scale ({', '.join(LOGIT_FACTORS)}), a soft cap "
            f"({', '.join(SOFT_CAPS)}) or a bias can be trained"
        )
