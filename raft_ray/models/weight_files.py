"""Where a model folder keeps its weights: which safetensors file holds which parameter.

Reads headers only, never a tensor.
"""

from __future__ import annotations

import re
from pathlib import Path

from raft_ray.errors import ModelError
from raft_ray.json_files import read_object
from raft_ray.models.architectures import TIED_HEADS

INDEX = "model.safetensors.index.json"


def weight_files(folder: str | Path) -> dict[str, str]:
    """The path of each parameter's file. Raises `ModelError` where a folder has no readable safetensors weights."""
    from safetensors import SafetensorError, safe_open

    root = Path(folder)
    index = root / INDEX
    if index.is_file():
        fix = "save the whole model anew with save_pretrained"
        names = read_object(index, fix, raises=ModelError).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
            raise ModelError(f"{index}: its weight_map does not name the file of each tensor; {fix}")
        absent = sorted({file for file in names.values() if not (root / file).is_file()})
        if absent:
            raise ModelError(f"{folder}: {absent[0]}, which {index.name} names, is missing")
        return {name: str(root / file) for name, file in names.items()}
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors weights there")
    found = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                found.update({name: str(file) for name in weights.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: not a readable safetensors file ({error})") from error
    return found


def matched_files(base_folder: str | Path, tuned_folder: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """The files of two models with the same parameters. A stored copy of tied embeddings is left out of both: saving
    may or may not write it, and it is no parameter of its own. Raises `ModelError` where the names differ."""
    base, tuned = weight_files(base_folder), weight_files(tuned_folder)
    config = Path(base_folder) / "config.json"
    settings = read_object(config, raises=ModelError) if config.is_file() else {}
    if settings.get("tie_word_embeddings", settings.get("text_config", {}).get("tie_word_embeddings", False)):
        for files in (base, tuned):
            for name in [name for name in files if re.search(TIED_HEADS, name)]:
                del files[name]
    if base.keys() != tuned.keys():
        odd = sorted(base.keys() ^ tuned.keys())
        raise ModelError(
            f"{tuned_folder}: its parameters are not those of {base_folder}; {len(odd)} differ, such as {odd[0]}"
        )
    return base, tuned
