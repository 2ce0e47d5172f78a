"""Rows that were trained elsewhere (`compare.models`): whether they can be measured beside the others.

Reads configs, tokenizers and headers of weight files, never a tensor; knows nothing about Ray.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raft_ray import models
from raft_ray.compare.plan import Training
from raft_ray.config import Config
from raft_ray.config.references import shown
from raft_ray.errors import ModelError
from raft_ray.models.weight_files import matched_files


def check_given(config: Config, base: str) -> None:
    """Refuse a model of `compare.models` that does not fit the model in `base`, whose tokens all rows are measured on.

    Raises `ModelError` naming row, folder and what to do.
    """
    for row, folders in config.compare.models.items():
        for name in folders:
            try:
                model = models.given(name, config.model)
                models.check_weights(model, config.model)
                folder = models.settled(model)
                models.load_chat(folder, config.model)
                if differs := models.vocabulary_difference(folder, base, config.model):
                    raise ModelError(f"{name}: {differs}; only models that came of it are compared")
                original = models.base_folder(base)
                if os.path.isdir(folder) and os.path.isdir(original):
                    matched_files(original, folder)
            except ModelError as error:
                said = str(error).removeprefix("model.path=").removeprefix("model.adapter=")
                raise ModelError(f"compare.models.{row}: {said}") from error


def changed(training: Training, block: dict[str, Any], evaluation: Path) -> bool:
    """Whether a given row's block in the file `evaluation` is of another model than is given now, as far as names and
    times of files say."""
    assert training.given is not None
    folders = map(Path, filter(None, models.split(training.given)))
    files = [file for folder in folders if folder.is_dir() for file in folder.glob("*")]
    # The time of the last change of the entry, which copying with the old times does not set back.
    newest = max((file.stat().st_ctime for file in files), default=0.0)
    return block.get("model") != shown(training.given) or newest > evaluation.stat().st_mtime
