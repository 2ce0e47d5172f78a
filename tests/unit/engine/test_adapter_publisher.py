"""What a learner publishes for `sync.adapter=hot`: the frozen weights once, and few bytes for each version."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from step_fixture import tiny_model

from actors.engine import weight_sync
from actors.engine.vllm_engine import check_adapters_served
from actors.engine.weight_sync import Publisher
from actors.engine.weights import adapter_tensors
from raft_ray.config import Config, LoraConfig, SyncAdapter, adapter_checks
from raft_ray.config.training import RehearsalConfig
from raft_ray.errors import ModelError
from raft_ray.models.adapters import add_adapter, target_modules

SHAPES = {
    "135M": {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "groups": 3, "words": 49152},
    "0.5B": {"hidden": 896, "inner": 4864, "layers": 24, "heads": 14, "groups": 2, "words": 151936},
    "8B": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "groups": 8, "words": 128256},
}


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sync.ray, "put", lambda value: value)


def config(**lora: Any) -> Config:
    made = Config()
    made.learner.lora, made.sync.adapter = LoraConfig(**lora), SyncAdapter.hot
    made.model.dtype = made.model.dtype.bfloat16
    return made


def numbers_of_adapter(model: Any, rank: int, wanted: str | list[str]) -> int:
    """Numbers in A and B of all layers."""
    ends = tuple(f".{name}" for name in target_modules(model, wanted))
    layers = [layer for name, layer in model.named_modules() if name.endswith(ends)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def test_the_base_is_published_once_as_it_was_and_each_version_holds_the_adapter_alone() -> None:
    plain, model = tiny_model(0), tiny_model(0)
    settings = config(rank=16)
    add_adapter(model, settings.learner.lora, seed=0)
    publisher = Publisher(settings, model, 0, hold=lambda version: {})
    first = publisher.offer(0)
    drawn = torch.Generator().manual_seed(1)
    written = {
        name: torch.randn(p.shape, generator=drawn) for name, p in adapter_tensors(model, 0) if ".lora_B." in name
    }
    model.load_state_dict(written, strict=False)
    second = publisher.publish(1)
    assert (first.version, second.version) == (0, 1)
    assert first.base is second.base is not None
    base = dict(second.base.packed.tensors())
    assert base.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(base[name], parameter.bfloat16()) for name, parameter in plain.named_parameters())
    before, after = (dict(weights.packed.tensors()) for weights in (first, second))
    assert before.keys() == after.keys()
    for name, tensor in adapter_tensors(model, 0):
        sent = f"base_model.model.{name}".replace(".default", "")
        assert torch.equal(after[sent], tensor.bfloat16())
        assert torch.equal(before[sent], tensor.bfloat16()) if name not in written else not before[sent].any()
    assert len(after) == 2 * len(written)
    assert first.checksum != second.checksum
    assert first.nbytes == second.nbytes == 2 * numbers_of_adapter(plain, 16, "all-linear")
    whole = publisher.pack(1)
    assert whole.base is None
    assert whole.nbytes == second.base.nbytes
    assert not all(torch.equal(tensor, base[name]) for name, tensor in whole.packed.tensors())


@pytest.mark.parametrize(
    ("shape", "wanted", "percent"),
    [
        ("135M", "all-linear", 3.6),
        ("135M", ["q_proj", "k_proj", "v_proj", "o_proj"], 1.4),
        ("0.5B", "all-linear", 1.8),
        ("8B", "all-linear", 0.5),
    ],
)
def test_an_adapter_of_rank_16_is_a_small_share_of_the_weights(
    shape: str, wanted: str | list[str], percent: float
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = SHAPES[shape]
    settings = LlamaConfig(
        hidden_size=size["hidden"],
        intermediate_size=size["inner"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["groups"],
        vocab_size=size["words"],
        tie_word_embeddings=shape != "8B",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert round(100 * numbers_of_adapter(model, 16, wanted) / whole, 1) == percent


def test_the_largest_rank_is_vllms() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert max(get_args(MaxLoRARanks)) == adapter_checks.LARGEST_ADAPTER


def test_an_architecture_whose_adapters_vllm_does_not_serve_is_refused() -> None:
    check_adapters_served("LlamaForCausalLM")
    check_adapters_served("NobodysForCausalLM")  # vLLM may have it by transformers' code; its engine tells.
    with pytest.raises(ModelError, match=r"^sync\.adapter=hot: vLLM's BloomForCausalLM .*; set sync\.adapter=merged$"):
        check_adapters_served("BloomForCausalLM")


def test_methods_without_engines_publish_whole_weights() -> None:
    made = config(rank=4)
    assert made.swaps_adapters
    made.distill.method, made.distill.rehearsal = made.distill.method.sft, RehearsalConfig(rows=0)
    assert not made.swaps_adapters
