"""What is proved of a model when it is loaded, so that what is trained is what the folder says.

Every tensor comes from the checkpoint; nothing is random in a training pass; attention leaves nothing out that the
layers ask of it. How logits are made is `raft_ray.models.head`'s.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from raft_ray.errors import ModelError
from raft_ray.models.architectures import EXPRESSED_BY_MASK, OUTPUT_SWITCHES
from raft_ray.models.weight_files import weight_files

_SHOWN = 3
_PROBE = "raft_ray_probe"
_PROBE_TOKENS = 16


def check_keys(folder: str, found: dict[str, Any]) -> None:
    """Refuse a checkpoint whose tensors are not the model's: transformers would make missing ones up. `found`:
    transformers' loading info. Raises `ModelError` naming the tensors."""
    faults = []
    for kind, what in (
        ("missing_keys", "tensors missing"),
        ("unexpected_keys", "tensors not of this model"),
        ("mismatched_keys", "of another shape"),
    ):
        # Those of another shape come with both shapes.
        if keys := sorted(key if isinstance(key, str) else str(key[0]) for key in found.get(kind) or ()):
            faults.append(f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' * (len(keys) > _SHOWN)})")
    if errors := found.get("error_msgs"):
        faults.append(str(errors[0]).strip().splitlines()[0])
    if faults:
        raise ModelError(
            f"model.path={folder}: its safetensors do not fit its config.json: {'; '.join(faults)}; save the whole "
            "model with save_pretrained"
        )


def check_ties(folder: str, model: Any, tied: bool) -> None:
    """Refuse a local checkpoint that holds two different tensors where its config makes them one. `tied`: by the config
    before loading: transformers unties what differs, and vLLM does not. Raises `ModelError`."""
    import torch
    from safetensors import safe_open

    if not Path(folder).is_dir() or not tied:
        return
    files, ties = weight_files(folder), model._tied_weights_keys
    if not isinstance(ties, dict):
        ties = getattr(model, "all_tied_weights_keys", None) or {}
    for name, source in ties.items():
        if name in files and source in files:
            with safe_open(files[name], "pt") as one, safe_open(files[source], "pt") as other:
                if not torch.equal(one.get_tensor(name), other.get_tensor(source)):
                    raise ModelError(
                        f"model.path={folder}: {name} and {source} differ, but config.json ties them "
                        "(tie_word_embeddings=true); set it to false there, or remove the one that is not meant"
                    )


def remove_randomness(text: Any) -> None:
    """Set every probability of dropping or shaking something in training to 0 in a text config."""
    for key, value in text.to_dict().items():
        if isinstance(value, float) and value and ("drop" in key or "jitter" in key):
            setattr(text, key, 0.0)


def check_repeatable(model: Any) -> None:
    """Refuse a model that computes something else in training than otherwise, though dropout is off. Raises
    `ModelError`."""
    import torch

    from raft_ray.models.head import last_hidden

    ids = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)[None]
    training = model.training
    with torch.inference_mode():
        in_training, in_use = (last_hidden(model.train(mode), ids) for mode in (True, False))
    model.train(training)
    if not torch.allclose(in_training, in_use, rtol=1e-3, atol=1e-5):
        raise ModelError(
            f"{type(model).__name__}: in training it computes other hidden states than in use, though its config's "
            "dropout is off; set learner.dropout=true to train it so"
        )


def settle_attention(model: Any) -> None:
    """Let a model attend by its own code where PyTorch's kernel would leave something out, such as a soft cap.
    transformers hands a layer's wishes to the kernel as keywords; those that the kernel does not know are dropped
    without a word."""
    import inspect

    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    from raft_ray.models.head import last_hidden

    if model.config._attn_implementation != "sdpa":
        return
    known = {*inspect.signature(sdpa_attention_forward).parameters, *EXPRESSED_BY_MASK, *OUTPUT_SWITCHES}
    dropped: set[str] = set()

    def watch(module: Any, *args: Any, **kwargs: Any) -> Any:
        dropped.update(key for key, value in kwargs.items() if value is not None and key not in known)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register(_PROBE, watch)
    AttentionMaskInterface.register(_PROBE, sdpa_mask)
    model.set_attn_implementation(_PROBE)
    with torch.inference_mode():
        last_hidden(model, torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)[None])
    model.set_attn_implementation("eager" if dropped else "sdpa")
    if dropped:
        logging.info("attention by the model's own code: PyTorch's leaves out %s", ", ".join(sorted(dropped)))
