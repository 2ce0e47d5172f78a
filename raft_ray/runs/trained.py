"""What a model folder was trained with: `raft_ray.json` beside its weights.

It tells the finished model of a run from one of fewer steps, other rows or other settings. Values of settings are kept
as hashes, since a model is passed on and its user's paths need not be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raft_ray import __version__
from raft_ray.config import Config
from raft_ray.config.resume import deciding
from raft_ray.errors import ConfigError, RaftError
from raft_ray.files import write_whole
from raft_ray.json_files import read_json

FILE = "raft_ray.json"


@dataclass(frozen=True)
class Trained:
    """The content of `raft_ray.json`."""

    steps: int
    """Optimizer steps."""
    rows: str
    """`rows_digest` of the training set."""
    settings: Mapping[str, str]
    """The beginning of the SHA-256 of each key's value, for the keys that decide what model comes out."""
    version: str = __version__
    """Of raft-ray."""
    weights_of: int | None = None
    """The step whose weights these are, where they need not be the last one's (`eval.keep`, `eval.patience`)."""
    why: str | None = None
    """Why they are."""

    @classmethod
    def by(cls, config: Config, steps: int, rows: str) -> Trained:
        """What a training with `config` to its end is."""
        return cls(steps, rows, {key: _hash(value) for key, value in deciding(config).items()})

    def write(self, folder: Path) -> None:
        said = {key: value for key, value in asdict(self).items() if value is not None}
        write_whole(folder / FILE, json.dumps(said, indent=1) + "\n")

    def is_finished(self, model: Path) -> bool:
        """Whether `model` is the model that this training ends with; false where none, or one of fewer steps, is there.
        Raises `ConfigError` for a model of other rows, other settings or more steps."""
        found = read_trained(model)
        if found is None:
            return False
        anew = "put that back, or start a new run with --run-dir"
        theirs, ours = found.settings, self.settings
        if keys := sorted(key for key in theirs.keys() | ours if theirs.get(key) != ours.get(key)):
            raise ConfigError(f"{', '.join(keys)}: the model in {model} was trained with other values; {anew}")
        if found.rows != self.rows:
            raise ConfigError(f"data.train: the model in {model} was trained on other rows; {anew}")
        if found.steps > self.steps:
            raise ConfigError(
                f"learner.max_steps: the model in {model} was trained for {found.steps} steps, the run would end after "
                f"{self.steps}; {anew}"
            )
        return found.steps == self.steps


def read_trained(model: Path) -> Trained | None:
    """What the model in a folder was trained with; none without a model, or one that raft-ray did not train. Raises
    `RaftError` for a file that cannot be read."""
    if not (model / FILE).exists():
        return None
    value: Any = read_json(model / FILE, "remove the folder, and the model is written anew by --resume")
    try:
        return Trained(**value)
    except TypeError as error:
        raise RaftError(f"{model / FILE}: not written by raft-ray; remove the folder") from error


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
