"""What transformers 4 reads of a model folder that transformers 5 has written, beside what 5 reads.

Version 4 looks for `rope_theta`, `rope_scaling`, `torch_dtype` and a tokenizer class that it has. Without them it takes
defaults in silence: another base of the rotary embeddings, no scaling, float32. Version 5 reads both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def add_old_keys(folder: Path) -> None:
    """Complete `config.json` and `tokenizer_config.json` of a model folder for transformers 4."""
    for name, change in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        change(settings)
        (folder / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(settings: dict[str, Any]) -> None:
    for inner in settings.values():
        if isinstance(inner, dict) and "rope_parameters" in inner:
            _config(inner)
    for new, old in (("dtype", "torch_dtype"), ("num_local_experts", "num_experts")):
        if new in settings:
            settings[old] = settings[new]
    rope = settings.get("rope_parameters")
    if not rope:
        return
    if str(settings.get("model_type", "")).startswith("gemma3") and "full_attention" in rope:
        # A base of its own where attention is local.
        settings["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if not {"rope_theta", "rope_type"} <= rope.keys():
        # By kinds of layers: version 4 knows no such architecture, and 5 would read the old keys instead.
        return
    settings["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        settings["partial_rotary_factor"] = rope["partial_rotary_factor"]
    elsewhere = {"rope_theta", "partial_rotary_factor"}
    if rope["rope_type"] == "longrope":
        # Phi: nothing but the factors, and `type` as the name of the kind.
        elsewhere |= {"rope_type", "original_max_position_embeddings"}
        settings |= {key: rope[key] for key in elsewhere & {"original_max_position_embeddings"} if key in rope}
        rope = {"type": "longrope", **rope}
    scaling = {key: value for key, value in rope.items() if key not in elsewhere}
    settings["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling


def _tokenizer(settings: dict[str, Any]) -> None:
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
