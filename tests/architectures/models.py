"""Tiny random models of the architectures that people train, in folders as they have them.

    folder = write_model("gemma2", tmp_path)    config, weights, generation config, tokenizer and chat template

Windows, rotary lengths and experts are so small that a row of a hundred tokens meets them. Norms and biases differ from
their initial values, so that a lost one shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from .tokenizers import GENERATION, SIZE, TOKENIZERS

_SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
_HEADS = _SHAPE | {"head_dim": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.02 * i for i in range(12)],
    "long_factor": [1.0 + 1.5 * i for i in range(12)],
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "plain": lambda: hf.LlamaConfig(**_HEADS, tie_word_embeddings=True, attention_dropout=0.1),
    "llama32": lambda: hf.LlamaConfig(
        **_HEADS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=[1, 5, 4],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "smollm3": lambda: hf.SmolLM3Config(**_SHAPE | {"num_hidden_layers": 4}, pad_token_id=0, tie_word_embeddings=True),
    "phi4mini": lambda: hf.Phi3Config(
        **_SHAPE,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        sliding_window=262144,
        original_max_position_embeddings=64,
        rope_parameters=_LONGROPE,
    ),
    "qwen25": lambda: hf.Qwen2Config(**_SHAPE | {"vocab_size": 576}, tie_word_embeddings=True, eos_token_id=2),
    "qwen3": lambda: hf.Qwen3Config(**_HEADS | {"vocab_size": 576}, tie_word_embeddings=True, eos_token_id=2),
    "qwen3moe": lambda: hf.Qwen3MoeConfig(
        **_HEADS | {"vocab_size": 576},
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        eos_token_id=2,
    ),
    "gemma2": lambda: hf.Gemma2Config(
        **_HEADS, query_pre_attn_scalar=32, sliding_window=16, attn_logit_softcapping=5.0, final_logit_softcapping=8.0
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **_HEADS | {"num_hidden_layers": 4}, query_pre_attn_scalar=32, sliding_window=32, sliding_window_pattern=2
    ),
    "mistral": lambda: hf.MistralConfig(**_HEADS, sliding_window=32, bos_token_id=1, eos_token_id=2),
    "olmo2": lambda: hf.Olmo2Config(**_SHAPE, pad_token_id=1, bos_token_id=0, eos_token_id=0),
    "gptoss": lambda: hf.GptOssConfig(
        **_HEADS,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        eos_token_id=2,
        pad_token_id=1,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 128,
        },
    ),
    # Beside those of the matrix, for what they do to logits, positions and checkpoints.
    "granite": lambda: hf.GraniteConfig(
        **_SHAPE, logits_scaling=4.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "phi": lambda: hf.PhiConfig(**_SHAPE, partial_rotary_factor=0.5),
    "bloom": lambda: hf.BloomConfig(vocab_size=SIZE, hidden_size=64, n_layer=2, n_head=2, initializer_range=0.2),
    "glm4moe": lambda: hf.Glm4MoeConfig(
        **_HEADS,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        n_shared_experts=1,
    ),
}
"""Name -> config; those of `TOKENIZERS` have the tokenizer of that name, the others the plain one."""

MATRIX = sorted(TOKENIZERS)
SHARING = {name: name not in ("gemma2", "gemma3", "mistral", "gptoss", "bloom") for name in CONFIGS}
"""Whether a row of some hundred tokens may share its prompt: windows and distances stand against it."""


def make_model(name: str, seed: int = 0) -> Any:
    """A float32 model of `CONFIGS[name]` in evaluation mode, which attends by its own code."""
    torch.manual_seed(seed + sum(map(ord, name)))
    config = CONFIGS[name]()
    config.dtype = "float32"
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return change(model.float().eval(), 0.1)


def change(model: Any, size: float) -> Any:
    """Move all weights, and the persistent buffers that are no counters, by random steps; returns the model."""
    from actors.engine.weights import persistent_buffers

    with torch.no_grad():
        for tensor in (*model.parameters(), *(buffer for _, buffer in persistent_buffers(model))):
            tensor.add_(size * torch.randn_like(tensor))
    return model


def write_model(name: str, folder: Path) -> Path:
    """A folder with a whole model, as a user has it."""
    model = make_model(name)
    tokenizer = name if name in TOKENIZERS else "plain"
    model.generation_config = hf.GenerationConfig(**GENERATION[tokenizer])
    model.save_pretrained(folder)
    TOKENIZERS[tokenizer]().save_pretrained(folder)
    return folder
