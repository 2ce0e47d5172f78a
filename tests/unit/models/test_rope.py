"""Rotary factors follow from the run's context alone: the same row gets the same logits whatever it is batched with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from raft_ray import models
from raft_ray.config import Dtype, ModelConfig
from raft_ray.errors import ModelError
from raft_ray.models import rope

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
    "max_position_embeddings": 256,
}


def phi(**more: Any) -> Phi3Config:
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors}
    return Phi3Config(**SHAPE, original_max_position_embeddings=32, pad_token_id=0, rope_parameters=parameters, **more)


def dynamic() -> LlamaConfig:
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    return LlamaConfig(**SHAPE, rope_parameters=parameters)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(phi()).save_pretrained(tmp_path)
    for file in tiny_model.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def loaded(folder: Path, context: int | None) -> Any:
    return models.load_model(str(folder), ModelConfig(dtype=Dtype.float32, context=context)).eval()


@pytest.mark.parametrize("context", [None, 32, 33, 200])
def test_a_row_has_the_same_logits_alone_and_beside_a_longer_one(folder: Path, context: int | None) -> None:
    model = loaded(folder, context)
    longest = models.model_context(str(folder), ModelConfig(context=context))
    assert longest == (context or 32)
    short = torch.arange(10)
    beside = torch.arange(longest) % 61
    both = torch.stack([torch.cat([short, torch.zeros(longest - 10, dtype=torch.long)]), beside])
    with torch.no_grad():
        assert torch.allclose(model(both).logits[0, :10], model(short[None]).logits[0], atol=1e-4)


def test_above_the_original_length_the_long_factors_hold_for_every_row(folder: Path) -> None:
    short = torch.arange(10)[None]
    with torch.no_grad():
        alone, stretched = (loaded(folder, context)(short).logits for context in (32, 200))
        beside = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        padded = torch.nn.functional.pad(short, (0, 90))
        assert torch.allclose(stretched, beside(padded).logits[:, :10], atol=1e-4)
        assert not torch.allclose(alone, stretched, atol=0.1)


def test_a_context_that_dynamic_ntk_would_stretch_is_refused_with_the_number_to_set() -> None:
    config = dynamic()
    assert rope.original_length(config) == 32
    assert rope.freeze(config, 32) is config
    with pytest.raises(ModelError, match=r"model\.context=33: .* of type dynamic .* set model\.context=32"):
        rope.freeze(config, 33)


def test_factors_that_do_not_depend_on_length_leave_the_context_alone() -> None:
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0})
    assert rope.original_length(config) is None
    before = config.to_dict()
    assert rope.freeze(config, 200).to_dict() == before
