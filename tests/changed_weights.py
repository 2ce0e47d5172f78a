"""The tiny model with other weights, and a prompt on which they show."""

from __future__ import annotations

from typing import Any

import torch

from raft_ray.config import Dtype, ModelConfig
from raft_ray.models import TINY, load_model, load_tokenizer, resolve

PROMPT = [{"role": "user", "content": "Write a short story about a lighthouse."}]


def changed_model(seed: int) -> Any:
    """The tiny model with every weight replaced, so that a layer left behind cannot go unseen."""
    model: Any = load_model(resolve(TINY), ModelConfig(dtype=Dtype.float32))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.dim() == 1 else 0.0))
    return model.eval()


def prompt_ids() -> list[int]:
    """The prompt's ids, as a chat that waits for its answer."""
    tokenizer = load_tokenizer(resolve(TINY), ModelConfig())
    text = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))
