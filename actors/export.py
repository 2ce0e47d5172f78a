"""Writing a trained model as a Hugging Face folder that `transformers` and vLLM load."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import ray

from actors.remote import FETCH
from actors.weight_sync import Weights
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import ModelConfig


@ray.remote
def export_model(config: ModelConfig, original: str, ref: list[ray.ObjectRef], folder: str) -> str:
    """Write `folder`: the weights behind `ref` with the original's config, generation config and tokenizer.

    Weights are safetensors of at most 5 GB a file, in the dtype that they were packed in. An older `folder` is
    replaced once the new one is complete.
    """
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig, GenerationConfig

    (weights,) = ray.get(ref, timeout=FETCH)
    assert isinstance(weights, Weights)
    target, partial = Path(folder), Path(folder + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Copies: safetensors wants memory of its own for each tensor.
    state = {name: tensor.clone() for name, tensor in weights.tensors()}
    save_torch_state_dict(state, partial, max_shard_size="5GB")
    announce("export", "writing")
    settings = AutoConfig.from_pretrained(original, trust_remote_code=config.trust_remote_code)
    settings.dtype = weights.specs[0].dtype
    settings.save_pretrained(partial)
    models.load_tokenizer(original, config).save_pretrained(partial)
    # Not every model has a generation config; transformers then goes by the config.
    with contextlib.suppress(OSError):
        GenerationConfig.from_pretrained(original).save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return folder
