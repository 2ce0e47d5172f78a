"""From a preset, YAML file and `key=value` overrides to a checked `Config`.

`reading` makes the config, `checks` refuses one that cannot work. Loads OmegaConf and the standard library only.
"""

from __future__ import annotations

from raft_ray.settings.checks import check, check_run_dir, distils, local_storage, required_resources
from raft_ray.settings.explain import explained
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

__all__ = [
    "MISSING",
    "check",
    "check_run_dir",
    "configs_dir",
    "distils",
    "explained",
    "flatten",
    "for_method",
    "keys",
    "load",
    "load_saved",
    "local_storage",
    "presets",
    "required_resources",
    "save",
    "to_yaml",
]
