"""What `raft-ray eval` was given: a model, or a config (preset, YAML file, run folder) that names one.

Knows nothing about models or settings beyond where they lie.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from raft_ray.errors import ConfigError

PRESET = "raft"
"""Whose settings a model alone is measured with."""


@dataclass(frozen=True)
class Target:
    """An evaluation to be made."""

    config: str
    """Preset, YAML file or run folder."""
    model: str | None
    """The model to measure; none takes the config's `model.path`."""
    has_base: bool
    """`model.path` is what it came from."""
    keys: list[str] = field(default_factory=list)
    """Overrides that follow from the model."""
    run_dir: str | None = None
    """Where results go unless said otherwise; none takes the config's `run.dir` with `-eval`."""


def find_target(target: str, model: str | None = None, base: str | None = None) -> Target:
    """Tell a model from a config.

    A folder with `config.json`, a built-in name (`embedded:`, `random:`) and a hub name with a slash are models.

    Args:
        target: the command's argument.
        model: `--model`, which goes with a config.
        base: `--base`, which goes with a model.

    Raises `ConfigError` for an option that does not go with the argument.
    """
    if Path(target).is_dir() and not any((Path(target) / name).is_file() for name in ("config.json", "config.yaml")):
        raise ConfigError(
            f"{target}: holds neither a model (config.json) nor a run (config.yaml); an adapter is to be merged with "
            "its model first"
        )
    if not is_model(target):
        if base is not None:
            raise ConfigError(f"--base {base}: goes with a model, and {target} is a config; set model.path={base}")
        trained = Path(target) / "model"
        # Beside the run folder: a run's own eval.json compares all of its methods, and must not be overwritten.
        return Target(target, model or (str(trained) if trained.is_dir() else None), has_base=True)
    if model is not None:
        raise ConfigError(f"--model {model}: goes with a config, and {target} is a model itself; leave one of them out")
    name = target.rstrip("/").replace(":", "/").rsplit("/", 1)[-1] or "model"
    return Target(
        PRESET,
        target,
        has_base=base is not None,
        keys=[f"model.path={json.dumps(base or target)}"],
        run_dir=f"runs/eval-{name}",
    )


def is_model(target: str) -> bool:
    """Whether the argument names a model rather than a config."""
    path = Path(target)
    if path.is_dir():
        return (path / "config.json").is_file()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return False
    return target.startswith(("embedded:", "random:")) or target.count("/") == 1
