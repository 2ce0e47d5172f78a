"""Rotary embeddings whose frequencies depend on how long a sequence is (longrope, dynamic NTK).

transformers chooses the factors by the longest row of a batch, vLLM by the longest context of an engine: the same row
gets other logits from each. Here they follow from `model.context` alone, for student, teacher, engines and evaluation:

    context up to the original length     the short factors, for every row (this is also the default context)
    context above it                      longrope: the long factors, for every row; dynamic NTK: refused
"""

from __future__ import annotations

from typing import Any

from raft_ray.errors import ModelError
from raft_ray.models.architectures import LENGTH_DEPENDENT


def original_length(text: Any) -> int | None:
    """Tokens up to which a text config's short factors hold; none where the factors do not depend on length."""
    lengths = [
        rope.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for rope in _parameters(text)
    ]
    return min(map(int, lengths), default=None)


def freeze(config: Any, context: int | None) -> Any:
    """Write into a model's config which factors hold for every row of up to `context` tokens; returns the config.
    `context`: `model.context`; none is the longest for which nothing has to be written. Raises `ModelError` for a
    context that dynamic NTK would stretch."""
    text = config.get_text_config()
    original = original_length(text)
    if original is None or context is None or context <= original:
        return config
    for rope in _parameters(text):
        if rope["rope_type"] != "longrope":
            raise ModelError(
                f"model.context={context}: rotary embeddings of type {rope['rope_type']} change with each row's length "
                f"above {original} tokens, which engines and learners do not follow alike; set model.context={original}"
            )
        for what in ("factor", "mscale"):
            if f"long_{what}" in rope:
                rope[f"short_{what}"] = rope[f"long_{what}"]
    return config


def _parameters(text: Any) -> list[dict[str, Any]]:
    """The rotary parameters that depend on length, of all layers or of each kind of layer."""
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return [kind for kind in kinds if kind.get("rope_type") in LENGTH_DEPENDENT]
