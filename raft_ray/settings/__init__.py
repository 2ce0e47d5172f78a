"""From a preset, YAML file and `key=value` overrides to a checked `Config`.

`reading` makes the config, `checks` refuses one that cannot work, `explain` writes what its keys mean. Loads
OmegaConf, psutil and the standard library only, and torch where `model.dtype=auto` asks about the CPU.
"""

from __future__ import annotations

from raft_ray.settings.checks import check
from raft_ray.settings.explain import explained
from raft_ray.settings.folders import check_run_dir, local_storage
from raft_ray.settings.reading import (
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
from raft_ray.settings.resources import required_resources
from raft_ray.settings.resume import changes, check_same_run, deciding, keep_date
from raft_ray.settings.training import distils

__all__ = [
    "MISSING",
    "changes",
    "check",
    "check_run_dir",
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
    "local_storage",
    "presets",
    "required_resources",
    "save",
    "to_yaml",
]
