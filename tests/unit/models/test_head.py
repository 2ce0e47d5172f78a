"""Logits are made as the model makes them, whatever it does to them after its head, or the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_fixture import topk_kl
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from raft_ray.distill.losses import sft_loss, topk_kl_from_hidden
from raft_ray.errors import ModelError
from raft_ray.models.head import Head, check_head

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
}
MODELS = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
    "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=3.0)),
    "bias": lambda: PhiForCausalLM(PhiConfig(**SHAPE)),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if name == "bias":
        torch.nn.init.normal_(model.lm_head.bias)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_logits_are_the_models_own(name: str, dtype: torch.dtype) -> None:
    model = made(name, dtype)
    check_head(model)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        own = model(ids).logits[0].float()
        hidden = model.get_decoder()(ids).last_hidden_state[0]
        head = Head.of(model)
        some = torch.arange(5, 25).reshape(20, 1).repeat(1, 4) + torch.arange(4)
        assert torch.allclose(head.logits(hidden), own, rtol=0.02, atol=0.02 if dtype == torch.bfloat16 else 1e-5)
        assert torch.allclose(head.chosen(hidden, some), head.logits(hidden).gather(1, some), rtol=0.03, atol=0.03)
        assert head.in_float32().weight.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(MODELS))
def test_losses_and_all_gradients_are_those_of_the_whole_logits(name: str) -> None:
    model = made(name).double()
    head = Head.of(model)
    drawn = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 32, generator=drawn, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(61, (7,), generator=drawn)
    ids = torch.stack([torch.randperm(61, generator=drawn)[:9] for _ in range(7)])
    targets = torch.randn(7, 9, generator=drawn)
    weight = torch.rand(7, generator=drawn) + 0.1
    wanted = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    whole = head.shaped(hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    cross = (torch.nn.functional.cross_entropy(whole, labels, reduction="none") * weight).sum()
    sft = sft_loss(hidden, head.weight, labels, weight, chunk_size=3, head=head)
    assert sft.item() == pytest.approx(cross.item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(sft, wanted), torch.autograd.grad(cross, wanted), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    # Rows of one token each, so that `topk_kl`'s mean over tokens is its mean over rows.
    whole = head.shaped(hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    plain = topk_kl(whole[:, None], ids[:, None], targets[:, None], torch.ones(7, 1), 1.5)
    kl = topk_kl_from_hidden(hidden, head.weight, ids, targets, torch.full((7,), 1 / 7), 1.5, chunk_size=2, head=head)
    assert kl.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(kl, wanted), torch.autograd.grad(plain, wanted), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_made_in_an_unknown_way_are_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of an architecture that nobody has named, even a small one."""
    model = made("plain", dtype)
    forward = type(model).forward

    def scaled(self: Any, *args: object, **kwargs: object) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = 1.1 * output.logits
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: .* not known here \(they are 1\.1\d* times ours\)"):
        check_head(model)


def test_weights_that_are_no_numbers_are_refused_as_such() -> None:
    model = made("plain")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="its logits are not finite numbers; its weights are damaged"):
        check_head(model)


def test_an_architecture_that_names_itself_as_its_decoder_has_hidden_states() -> None:
    model = made("plain")
    model.get_decoder = lambda: model
    check_head(model)
