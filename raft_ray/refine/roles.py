"""Who does what in stage 1: the names in `refine.rewriter`, `refine.fuser` and `refine.judges`, and what they mean.

A role is played by `self` (the original model), by one of `refine.models`, and a judge's also by a rule
(`raft_ray.refine.judges.RULES`). Knows nothing about engines, endpoints or prompts.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raft_ray.config import RefineConfig, RefineModelConfig
from raft_ray.errors import ConfigError
from raft_ray.refine.judges import RULES

SELF = "self"
NONE = "none"


def role_models(config: RefineConfig) -> dict[str, RefineModelConfig]:
    """The models besides the original one that play a role, by name.

    Raises `ConfigError` for a role that names nobody, a model that is described wrongly, and judges named twice.
    """
    described = {name: _described(name, given) for name, given in config.models.items()}
    playing: dict[str, RefineModelConfig] = {}
    judges = list(config.judges) if config.fuser != NONE else []
    for key, name, others in [
        ("refine.rewriter", config.rewriter, [SELF]),
        ("refine.fuser", config.fuser, [SELF, NONE]),
        *(("refine.judges", judge, [SELF, *RULES]) for judge in judges),
    ]:
        if name in described:
            playing[name] = described[name]
        elif name not in others:
            nearest = difflib.get_close_matches(name, [*others, *described], n=1, cutoff=0.0)
            known = ", ".join([*others, *described])
            raise ConfigError(f"{key}={name}: nobody is called so; did you mean {nearest[0]!r}? There are {known}")
    if not judges and config.fuser != NONE:
        raise ConfigError(f"refine.judges: none named; take one or more of {', '.join([*RULES, SELF, *described])}")
    if len(set(judges)) < len(judges):
        raise ConfigError(f"refine.judges={judges}: a judge is named twice; each name counts once")
    return playing


def model_roles(config: RefineConfig) -> list[str]:
    """The names of the models that stage 1 asks, `self` included, each once."""
    named = [config.rewriter, *([config.fuser, *config.judges] if config.fuser != NONE else [])]
    return list(dict.fromkeys(name for name in named if name not in RULES))


def _described(name: str, given: Any) -> RefineModelConfig:
    """One of `refine.models`. Raises `ConfigError` naming the key."""
    where = f"refine.models.{name}"
    if name in (SELF, NONE, *RULES):
        raise ConfigError(f"{where}: this name has a meaning of its own; choose another")
    known = [each.name for each in fields(RefineModelConfig)]
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: takes a mapping with keys such as {', '.join(known[:4])}")
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown key {where}.{key}; did you mean {nearest}?")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RefineModelConfig), given))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}.{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from error
    assert isinstance(made, RefineModelConfig)
    if (made.path is None) == (made.base_url is None):
        both = "both path and base_url" if made.path else "neither path nor base_url"
        raise ConfigError(f"{where} has {both}; a local model has path, an endpoint base_url and model")
    if made.base_url is not None and made.model is None:
        raise ConfigError(f"{where}.model is missing: what the endpoint calls its model")
    for key in ("actors", "tensor_parallel", "concurrency", "timeout"):
        if getattr(made, key) <= 0:
            raise ConfigError(f"{where}.{key}={getattr(made, key)}: must be greater than 0")
    for key in ("num_cpus", "num_gpus", "retries", "input_cost", "output_cost"):
        if getattr(made, key) < 0:
            raise ConfigError(f"{where}.{key}={getattr(made, key)}: must be at least 0")
    return made
