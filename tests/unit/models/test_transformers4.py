"""A model folder that transformers 5 has written holds what transformers 4 looks for, and is the same to version 5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3MoeConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raft_ray.models.transformers4 import add_old_keys

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096, **FACTORS}
GEMMA = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama3 scaling": (
        LlamaConfig(rope_parameters=LLAMA3, dtype="bfloat16"),
        {
            "rope_theta": 500000.0,
            "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
            "torch_dtype": "bfloat16",
        },
    ),
    "no scaling": (
        LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 130000.0}),
        {"rope_theta": 130000.0, "rope_scaling": None},
    ),
    "longrope": (
        Phi3Config(rope_parameters=LONGROPE, pad_token_id=0),
        {
            "rope_theta": 1e4,
            "rope_scaling": {"type": "longrope", **FACTORS},
            "original_max_position_embeddings": 4096,
        },
    ),
    "two bases": (
        Gemma3TextConfig(rope_parameters=GEMMA),
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "experts": (Qwen3MoeConfig(num_experts=4), {"num_experts": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_old_keys_stand_beside_the_new_and_change_nothing_for_version_5(
    case: str, tmp_path: Path, tiny_model: Path
) -> None:
    config, old = CASES[case]
    config.save_pretrained(tmp_path)
    shutil.copy(tiny_model / "tokenizer_config.json", tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)

    add_old_keys(tmp_path)

    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in old} == old
    after = AutoConfig.from_pretrained(tmp_path)
    kinds = {**after.rope_parameters}
    kinds.pop("type", None)  # An old name that version 5 keeps when it finds it.
    assert {key: kinds[key] for key in before.rope_parameters} == before.rope_parameters
    for key, value in before.to_dict().items():
        assert key == "rope_parameters" or after.to_dict()[key] == value


def test_the_tokenizer_has_a_class_and_special_tokens_that_version_4_knows(tmp_path: Path, tiny_model: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / file, tmp_path)
    before = AutoTokenizer.from_pretrained(tmp_path, extra_special_tokens=["<|im_start|>"])
    before.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["extra_special_tokens"] == ["<|im_start|>"]

    add_old_keys(tmp_path)

    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in written
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert after.all_special_tokens == before.all_special_tokens
    assert after.chat_template == before.chat_template
    text = "<|im_start|>user\nfür 7?<|im_end|>"
    assert after(text).input_ids == before(text).input_ids


def test_no_architecture_reads_another_config_with_the_old_keys(tmp_path: Path) -> None:
    """Of all that transformers can make with its defaults; after a training it would be too late to find out."""
    tried = 0
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        try:
            config = AutoConfig.for_model(kind)
            config.save_pretrained(tmp_path)
            before = AutoConfig.from_pretrained(tmp_path).to_dict()
        except Exception:  # What cannot be made, or read back, without them.
            continue
        (tmp_path / "tokenizer_config.json").write_text("{}")
        add_old_keys(tmp_path)
        assert _holds(AutoConfig.from_pretrained(tmp_path).to_dict(), before), name
        tried += 1
    assert tried > 100


def _holds(after: Any, before: Any) -> bool:
    """Whether `after` has all of `before`, beside keys of its own; what an old key is set to is read nowhere."""
    if isinstance(before, dict):
        return all(key in after and _holds(after[key], value) for key, value in before.items() if key != "rope_scaling")
    return bool(after == before)
