"""A tiny model, and rows with responses that another one scored: what the tests of a step compute with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from raft_ray.distill.losses import _renormalised_kl, token_weights
from raft_ray.distill.order import SampleId
from raft_ray.distill.teacher import score
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.prompts import EncodedRow

TEMPERATURE = 1.5


def tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            initializer_range=0.3,
        )
    )


def rows_and_samples(count: int, kept: int = 12) -> tuple[list[EncodedRow], list[Sample]]:
    """Rows of different lengths with responses scored by another model under another prompt."""
    random = np.random.default_rng(0)
    teacher = tiny_model(1).eval()
    rows, responses = [], []
    for i in range(count):
        prompt = random.integers(3, 40, 3 + i).tolist()
        rows.append(EncodedRow(i, prompt, random.integers(3, 40, 2 + i % 3).tolist(), [5, 6, *prompt]))
        responses.append(random.integers(3, 40, 1 + (2 * i) % 5).astype(np.int32))
    scored = score(teacher, [r.teacher_prompt for r in rows], responses, top_k=kept, tokens=64)
    samples = [
        Sample(Trajectory(SampleId(0, i), 0, response, False, "rollout-0"), ids, values)
        for i, (response, (ids, values, _)) in enumerate(zip(responses, scored, strict=True))
    ]
    return rows, samples


def topk_kl(
    student_logits: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """What `topk_kl_from_hidden` computes, from logits [B, L, V] of all positions: to be compared with."""
    weights = token_weights(mask)
    chosen = student_logits.gather(-1, teacher_ids.long()).float()
    # A position that does not count may hold anything, NaN included: it must touch neither value nor gradient.
    keep = mask.bool().unsqueeze(-1)
    kl, _, _ = _renormalised_kl(
        torch.where(keep, chosen, 0.0), torch.where(keep, teacher_logprobs.float(), 0.0), temperature
    )
    return temperature**2 * (weights * kl).sum()
