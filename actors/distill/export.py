"""Writing a trained model as a Hugging Face folder that `transformers` and vLLM load, and its adapter beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.engine.weight_sync import WeightVersion
from actors.runtime.remote import FETCH
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import ModelConfig
from raft_ray.files import writing
from raft_ray.models.transformers4 import add_old_keys
from raft_ray.runs.trained import Trained


@ray.remote
def export_model(
    config: ModelConfig,
    original: str,
    weights: WeightVersion,
    folder: str,
    trained: Trained,
    adapter: Mapping[str, bytes] | None,
) -> str:
    """Write `folder`: the packed `weights` with the original's config, generation config and tokenizer.

    Weights are safetensors of at most 5 GB a file, in the dtype that they were packed in. An older `folder` is
    replaced once the new one is complete. `trained` says of what it is, in the folder as well. The files of an
    `adapter` (`raft_ray.models.adapters.adapter_files`), which the weights hold merged, go to `adapter_folder(folder)`.

    Raises `RaftError` where it cannot be written.
    """
    with writing(folder), _from_rust():
        from huggingface_hub import save_torch_state_dict
        from transformers import AutoConfig
        from transformers.utils import cached_file

        original = models.base_folder(original)
        packed = ray.get(weights.packed, timeout=FETCH)
        state = models.checkpoint_tensors(original, config, dict(packed.tensors()))
        target, partial = Path(folder), Path(folder + ".partial")
        for part in (partial, adapter_folder(partial)):
            shutil.rmtree(part, ignore_errors=True)
        partial.mkdir(parents=True)
        save_torch_state_dict(state, partial, max_shard_size="5GB")
        announce("export", "writing")
        settings = AutoConfig.from_pretrained(original, trust_remote_code=config.trust_remote_code)
        settings.dtype = config.dtype.value
        settings.save_pretrained(partial)
        models.load_tokenizer(original, config).save_pretrained(partial)
        add_old_keys(partial)
        # As it is: transformers would not write again all that it reads. Without one, it goes by the config.
        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        if generation := cached_file(original, "generation_config.json", **quiet):
            shutil.copyfile(generation, partial / "generation_config.json")
        for name, content in (adapter or {}).items():
            adapter_folder(partial).mkdir(exist_ok=True)
            (adapter_folder(partial) / name).write_bytes(content)
        trained.write(partial)
        move_model(partial, target)
        return folder


@contextmanager
def _from_rust() -> Iterator[None]:
    """What safetensors and tokenizers raise, which are written in Rust, becomes the `OSError` that it is."""
    try:
        yield
    except Exception as error:
        if "os error" not in str(error):
            raise
        raise OSError(str(error)) from error


def adapter_folder(model: Path) -> Path:
    """Where the adapter of the model in a folder is: `adapter` beside `model`, `step-3_adapter` beside `step-3`."""
    return model.with_name(f"{model.name}_adapter".removeprefix("model_"))


def move_model(source: Path, target: Path) -> None:
    """Let a model and its adapter, if it has one, take the place of others."""
    for old, new in ((adapter_folder(source), adapter_folder(target)), (source, target)):
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            old.rename(new)
