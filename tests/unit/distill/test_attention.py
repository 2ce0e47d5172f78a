"""Attention in float32: the same losses and gradients, and in bfloat16 no worse ones."""

from __future__ import annotations

import copy

import pytest
import torch
from step_fixture import TEMPERATURE, rows_and_samples, tiny_model
from torch import Tensor

from raft_ray.distill.attention import SDPA_FLOAT32, attend_in_float32
from raft_ray.distill.student import MicroBatch, Student, make_micro_batches


def _batch(share_prompt: bool) -> MicroBatch:
    rows, samples = rows_and_samples(6)
    (batch,) = make_micro_batches(rows, samples, total=6, tokens=1000, share_prompt=share_prompt)
    return batch


def _losses_and_gradients(model: torch.nn.Module, batch: MicroBatch) -> list[Tensor]:
    student = Student(copy.deepcopy(model), TEMPERATURE)
    losses = student(batch)
    losses.sum().backward()
    return [losses.detach(), *(p.grad.float() for p in student.parameters() if p.grad is not None)]


@pytest.mark.parametrize("share_prompt", [True, False])
def test_a_float32_model_gets_the_same(share_prompt: bool) -> None:
    batch, model = _batch(share_prompt), tiny_model(0)
    want = _losses_and_gradients(model, batch)
    attend_in_float32(model)
    assert model.config._attn_implementation == SDPA_FLOAT32
    for a, b in zip(_losses_and_gradients(model, batch), want, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("share_prompt", [True, False])
def test_a_bfloat16_model_comes_as_close_to_float32_as_with_its_own(share_prompt: bool) -> None:
    batch, model = _batch(share_prompt), tiny_model(0).bfloat16()
    want = _losses_and_gradients(copy.deepcopy(model).float(), batch)
    own = _losses_and_gradients(model, batch)
    attend_in_float32(model)
    found = _losses_and_gradients(model, batch)

    def off(other: list[Tensor]) -> float:
        return float(torch.cat([(a - b).flatten() for a, b in zip(other, want, strict=True)]).norm())

    assert 0 < off(found) < 1.2 * off(own)
    assert off(found) < 0.05 * float(torch.cat([one.flatten() for one in want]).norm())


def test_a_model_with_another_attention_keeps_it() -> None:
    model = tiny_model(0)
    model.set_attn_implementation("eager")
    attend_in_float32(model)
    assert model.config._attn_implementation == "eager"
