"""How far a fine-tuned model has moved from its base: in what it would say next (drift), and in its weights.

Drift is `KL(p_base ‖ p_tuned)` in nats, averaged over all tokens of the base's greedy answers to general prompts, the
same at each answer's first token, and the share of tokens where both put the same token first. Zero for an unchanged
model. The first token tells what the mean hides: a model that begins everything in one way goes on as the base does
once the base has begun. It reads token ids only.

The output head works on a chunk of positions at a time, so no `[tokens, V]` tensor larger than a chunk exists; body
in the model's own dtype, head and softmax in float32 (a bfloat16 head would add noise of the size of a small drift).

Shapes: n response positions, C positions of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from raft_ray.errors import ModelError
from raft_ray.models.head import Head, Pair, response_hidden
from raft_ray.models.weight_files import matched_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")


@dataclass(frozen=True)
class Drift:
    """The distance of two models over some answers."""

    kl: float
    """KL(base ‖ tuned), nats per token."""
    kl_first: float
    """The same at the first token of each answer."""
    top1_agreement: float
    """Share of tokens where both models' most likely token is the same."""
    tokens: int
    """Response tokens, end-of-turn tokens included."""
    rows: int
    """Answers."""


class Reference:
    """The base model's side, computed once and compared with any number of tuned models. Holds the base's hidden states
    at the response positions and its head; the model itself is not kept. `sequences`: `(prompt_ids, response_ids)` of
    answers that the base wrote; every prompt has a token, and empty answers are left out. Raises `ValueError` when
    there is no response token. `tokens`: tokens per forward pass (padded)."""

    def __init__(self, base_model: PreTrainedModel, sequences: Sequence[Pair], *, tokens: int = 4096) -> None:
        self.sequences = [pair for pair in sequences if pair[1]]
        if not self.sequences:
            raise ValueError("drift needs at least one response token")
        self.tokens = tokens
        self.head = Head.of(base_model).in_float32()
        self.hidden_nD = response_hidden(base_model, self.sequences, tokens=tokens)

    def unchanged(self) -> Drift:
        """The base's drift from itself, without a forward pass."""
        return Drift(0.0, 0.0, 1.0, len(self.hidden_nD), len(self.sequences))

    def compare(self, tuned_model: PreTrainedModel, *, chunk_size: int = 256) -> Drift:
        """The drift of `tuned_model`, with the logits of `chunk_size` positions at one time. Raises `ModelError` when
        its vocabulary is another."""
        head = Head.of(tuned_model).in_float32()
        if head.rows != self.head.rows:
            raise ModelError(f"drift: the tuned model has {head.rows} output tokens, its base {self.head.rows}")
        tuned_nD = response_hidden(tuned_model, self.sequences, tokens=self.tokens)
        lengths = [len(response) for _, response in self.sequences]
        return drift_between(self.head, self.hidden_nD, head, tuned_nD, lengths, chunk_size=chunk_size)


@torch.inference_mode()
def drift_between(
    base: Head,
    base_nD: torch.Tensor,
    tuned: Head,
    tuned_nD: torch.Tensor,
    lengths: Sequence[int],
    *,
    chunk_size: int = 256,
) -> Drift:
    """The drift by two models' hidden states [n, D] at the same response tokens, and their heads. `lengths`: tokens of
    each answer, which make n. `chunk_size`: positions that have logits at one time."""
    divergences: list[torch.Tensor] = []
    agreed = 0
    for base_CD, tuned_CD in zip(base_nD.split(chunk_size), tuned_nD.split(chunk_size), strict=True):
        p_CV = base.logits(base_CD).log_softmax(-1)
        q_CV = tuned.logits(tuned_CD).log_softmax(-1)
        agreed += int((p_CV.argmax(-1) == q_CV.argmax(-1)).sum())
        # kl_div(input=log q, target=log p) is KL(p ‖ q), and 0 where p is 0.
        kl_C = torch.nn.functional.kl_div(q_CV, p_CV, reduction="none", log_target=True).sum(-1)
        divergences.append(kl_C.double().cpu())
    kl_n = torch.cat(divergences)
    count = len(kl_n)
    first = list(accumulate(lengths[:-1], initial=0))
    return Drift(float(kl_n.mean()), float(kl_n[first].mean()), agreed / count, count, len(lengths))


def weight_distance(base_folder: str, tuned_folder: str) -> dict[str, Any]:
    """`‖W - W0‖₂ / ‖W0‖₂`, where W is a layer's parameters one after the other, in float64, read tensor by tensor.
    Returns `{"total": over all parameters, "layers": {"0": ..., "embed": ..., "other": ...}}`; `other` holds the final
    norm and an untied head. Tied embeddings count once, also where one of the folders stores the head as well. Raises
    `ModelError` where names or shapes differ, or a folder has no readable safetensors weights."""
    base, tuned = matched_files(base_folder, tuned_folder)
    moved: defaultdict[str, float] = defaultdict(float)
    size: defaultdict[str, float] = defaultdict(float)
    with torch.inference_mode():
        for name in sorted(base):
            with safe_open(base[name], framework="pt") as first, safe_open(tuned[name], framework="pt") as second:
                old, new = first.get_tensor(name), second.get_tensor(name)
            if old.shape != new.shape:
                raise ModelError(f"{tuned_folder}: {name} is {tuple(new.shape)}, in {base_folder} {tuple(old.shape)}")
            if not old.is_floating_point():
                continue
            number = _LAYER.search(f".{name}")
            layer = number[1] if number else "embed" if _EMBEDDING.search(name) else "other"
            old = old.float()
            moved[layer] += float((new.float() - old).double().square().sum())
            size[layer] += float(old.double().square().sum())
    order = sorted(size, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0, layer))
    return {
        "total": _ratio(sum(moved.values()), sum(size.values())),
        "layers": {layer: _ratio(moved[layer], size[layer]) for layer in order},
    }


def _ratio(moved: float, size: float) -> float:
    """0/0, a layer of zeros that stayed so, is 0."""
    return math.sqrt(moved / size) if size else (math.inf if moved else 0.0)
