"""The tiny model with a random adapter, and the two as a learner publishes them for `sync.adapter=hot`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from actors.engine.weight_sync import WeightVersion, pack
from actors.engine.weights import adapter_tensors, full_tensors
from raft_ray.config import Dtype, LoraConfig, ModelConfig
from raft_ray.models import TINY, load_model, resolve
from raft_ray.models.adapters import add_adapter, peft_names


def adapted_model(seed: int, lora: LoraConfig) -> Any:
    """A and B are drawn from the seed."""
    model: Any = load_model(resolve(TINY), ModelConfig(dtype=Dtype.float32))
    add_adapter(model, lora, seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=drawn))
    return model.eval()


def merged_model(model: Any) -> Any:
    """A plain model with the whole weights that the learner would publish."""
    plain: Any = load_model(resolve(TINY), ModelConfig(dtype=Dtype.float32))
    plain.load_state_dict(dict(full_tensors(model, 0)), strict=False)
    return plain.eval()


def pack_base(model: Any) -> WeightVersion:
    return pack(0, full_tensors(model, 0, merge=False))


def pack_adapter(version: int, model: Any, base: WeightVersion) -> WeightVersion:
    return replace(pack(version, peft_names(model, dict(adapter_tensors(model, 0))).items()), base=base)
