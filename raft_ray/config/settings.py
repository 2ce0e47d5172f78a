"""From a preset, YAML file and `key=value` overrides to a checked `Config`.

`reading` makes the config, `checks` refuses one that cannot work, `explain` writes what its keys mean. Loads
OmegaConf, psutil and the standard library only, and torch where `model.dtype=auto` asks about the CPU.
"""

from __future__ import annotations

from raft_ray.config.checks import check
from raft_ray.config.explain import explained
from raft_ray.config.methods import distils
from raft_ray.config.reading import (
    MISSING,
    configs_dir,
    flatten,
    for_method,
    keys,
    load,
    load_saved,
    presets,
    save,
    to_yaml,
)
from raft_ray.config.resources import required_resources
from raft_ray.config.resume import changes, check_same_run, deciding, keep_date

__all__ = [
    "MISSING",
    "changes",
    "check",
    "check_same_run",
    "configs_dir",
    "deciding",
    "distils",
    "explained",
    "flatten",
    "for_method",
    "keep_date",
    "keys",
    "load",
    "load_saved",
    "presets",
    "required_resources",
    "save",
    "to_yaml",
]
