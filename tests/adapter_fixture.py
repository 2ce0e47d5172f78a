"""A peft adapter of other weights than none, as peft itself makes and saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch

from raft_ray import models
from raft_ray.config import Dtype, ModelConfig

FLOAT32 = ModelConfig(dtype=Dtype.float32)


def save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Save an adapter on `base` to `folder`; `settings`: of `peft.LoraConfig`."""
    model: Any = models.load_model(str(base), FLOAT32)
    made = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **made))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return folder
