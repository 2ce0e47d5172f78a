"""The methods that a run trains beside its own: `run.baselines`, with their `run.overrides`."""

from __future__ import annotations

from raft_ray.config import Config, Method, reading
from raft_ray.config.methods import check_training
from raft_ray.config.ranges import check_ranges
from raft_ray.errors import ConfigError

SHARED = ("run", "model", "data", "refine", "eval")
"""Sections that belong to the run as a whole, so that all its methods are compared on the same ground."""


def check_baselines(config: Config) -> None:
    """Refuse baselines and overrides that name no method, change what is shared, or cannot be trained. Raises
    `ConfigError`."""
    methods = [method.value for method in Method]
    for name in config.run.baselines:
        if name not in methods:
            hint = reading.nearest(name, methods)
            raise ConfigError(f"run.baselines: there is no method {name}{hint} (methods: {', '.join(methods)})")
    if twice := _repeated(config.run.baselines):
        raise ConfigError(f"run.baselines: {twice} is named twice")
    if config.distill.method.value in config.run.baselines:
        raise ConfigError(f"run.baselines: {config.distill.method.value} is distill.method already; leave it out")
    for name, overrides in config.run.overrides.items():
        if name not in methods:
            hint = reading.nearest(name, methods)
            raise ConfigError(f"run.overrides.{name}: there is no such method{hint} (methods: {', '.join(methods)})")
        if name == config.distill.method.value:
            raise ConfigError(f"run.overrides.{name}: is distill.method, whose keys are set directly; leave it out")
        if not isinstance(overrides, dict):
            raise ConfigError(f"run.overrides.{name}: must hold sections, such as {{learner: {{lr: 1e-4}}}}")
        for section, values in overrides.items():
            if section in SHARED or (section == "distill" and "method" in (values or {})):
                key = "distill.method" if section == "distill" else section
                raise ConfigError(f"run.overrides.{name}.{key}: cannot differ; all methods of a run share it")
    # Keys and types of a method that this run does not train are checked too.
    for name in dict.fromkeys([*config.run.overrides, *config.run.baselines]):
        made = reading.for_method(config, name)
        if name in config.run.baselines:
            check_ranges(made, f"run.overrides.{name}: ")
            check_training(made, f"baseline {name}: ")


def _repeated(names: list[str]) -> str | None:
    return next((name for position, name in enumerate(names) if name in names[:position]), None)
