"""How far the weights have moved: the relative l2 distance to the base, for each layer and in total.

Reads safetensors folders tensor by tensor and builds no model. Knows nothing about architectures beyond the number
in a layer's parameter names (`model.layers.3.mlp...`).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

from raft_ray.errors import ModelError
from raft_ray.models.weight_files import matched_files

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")


def weight_distance(base_folder: str, tuned_folder: str) -> dict[str, Any]:
    """`‖W - W0‖₂ / ‖W0‖₂`, where W is a layer's parameters one after the other, in float64.

    Returns `{"total": over all parameters, "layers": {"0": ..., "embed": ..., "other": ...}}`; `other` holds the final
    norm and an untied head. Tied embeddings count once, also where one of the folders stores the head as well.
    Raises `ModelError` where names or shapes differ, or a folder has no readable safetensors weights.
    """
    import torch
    from safetensors import safe_open

    base, tuned = matched_files(base_folder, tuned_folder)
    moved: defaultdict[str, float] = defaultdict(float)
    size: defaultdict[str, float] = defaultdict(float)
    with torch.inference_mode():
        for name in sorted(base):
            with safe_open(base[name], framework="pt") as first, safe_open(tuned[name], framework="pt") as second:
                old, new = first.get_tensor(name), second.get_tensor(name)
            if old.shape != new.shape:
                raise ModelError(f"{tuned_folder}: {name} is {tuple(new.shape)}, in {base_folder} {tuple(old.shape)}")
            if not old.is_floating_point():
                continue
            layer = _layer(name)
            old = old.float()
            moved[layer] += float((new.float() - old).double().square().sum())
            size[layer] += float(old.double().square().sum())
    order = sorted(size, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0, layer))
    return {
        "total": _ratio(sum(moved.values()), sum(size.values())),
        "layers": {layer: _ratio(moved[layer], size[layer]) for layer in order},
    }


def _layer(name: str) -> str:
    match = _LAYER.search(f".{name}")
    if match:
        return match.group(1)
    return "embed" if _EMBEDDING.search(name) else "other"


def _ratio(moved: float, size: float) -> float:
    """0/0, a layer of zeros that stayed so, is 0."""
    return math.sqrt(moved / size) if size else (math.inf if moved else 0.0)
