"""Which trainings a comparison consists of, and the config of each.

Knows nothing about Ray: configs in, configs out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raft_ray import settings
from raft_ray.config import Config, Method
from raft_ray.errors import ConfigError
from raft_ray.settings.checks import SHARED

FAPM = "fapm"
PRUNED = Method.sft.value
"""The row that FAPM prunes."""


@dataclass(frozen=True)
class Training:
    """One row of the comparison with one seed."""

    row: str
    seed: int
    folder: Path
    """Its run folder; the model lies in `model/` of it."""
    config: Config | None
    """None for FAPM, which trains nothing."""

    @property
    def name(self) -> str:
        """For messages and for `compare.json`."""
        return f"{self.row}/seed{self.seed}"


def plan(config: Config, run_dir: Path) -> list[Training]:
    """Every training, seed by seed, so that an interrupted comparison has whole seeds; FAPM after what it prunes.

    Raises `ConfigError` naming the key under `compare` for what cannot be trained.
    """
    wanted = config.compare
    rows = wanted.methods
    if not rows or not wanted.seeds:
        key = "compare.seeds" if rows else "compare.methods"
        raise ConfigError(f"{key} is empty; name at least one")
    for key, values in (("compare.methods", rows), ("compare.seeds", wanted.seeds)):
        if len(set(values)) < len(values):
            raise ConfigError(f"{key}={values}: names one twice")
    if min(wanted.seeds) < 0:
        raise ConfigError(f"compare.seeds={wanted.seeds}: must be at least 0")
    if FAPM in rows and PRUNED not in rows:
        raise ConfigError(f"compare.methods={rows}: fapm prunes the model of sft; name sft as well")
    if not config.eval.enabled:
        raise ConfigError("eval.enabled=false: there is nothing to compare without an evaluation; leave it on")
    if unknown := next((name for name in wanted.overrides if name not in rows), None):
        raise ConfigError(f"compare.overrides.{unknown}: no such row in compare.methods={rows}")
    ordered = sorted(rows, key=lambda row: row == FAPM)
    configs = {row: _row_config(config, row) for row in ordered}
    return [
        Training(row, seed, folder, _seeded(made, seed, folder) if made else None)
        for seed in wanted.seeds
        for row, made in configs.items()
        for folder in [run_dir / "methods" / row / f"seed{seed}"]
    ]


def _row_config(config: Config, row: str) -> Config | None:
    overrides = copy.deepcopy(config.compare.overrides.get(row) or {})
    where = f"compare.overrides.{row}"
    if row == FAPM:
        if overrides:
            raise ConfigError(f"{where}: FAPM trains nothing; set compare.sparsity")
        return None
    if not isinstance(overrides, dict) or not all(isinstance(values, dict) for values in overrides.values()):
        raise ConfigError(f"{where}: must hold sections, such as {{learner: {{lr: 1e-4}}}}")
    for section in overrides:
        if section in (*SHARED, "compare"):
            raise ConfigError(f"{where}.{section}: cannot differ; all rows of a comparison share it")
    method = _method(row, overrides, where)
    own = replace(config, run=replace(config.run, baselines=[], overrides={method: overrides}))
    try:
        made = settings.for_method(own, method)
        settings.check(made)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'run.overrides.{method}: ')}") from error
    return made


def _method(row: str, overrides: dict[str, Any], where: str) -> str:
    """The method that a row trains: its name, or what its overrides say."""
    methods = [method.value for method in Method]
    said = overrides.get("distill", {}).pop("method", None)
    if row in methods:
        if said not in (None, row):
            raise ConfigError(f"{where}.distill.method={said}: give the row another name than that of a method")
        return row
    if said not in methods:
        raise ConfigError(
            f"compare.methods: {row} is no method ({', '.join([*methods, FAPM])}); "
            f"say what it trains with {where}.distill.method"
        )
    return str(said)


def _seeded(config: Config, seed: int, folder: Path) -> Config:
    return replace(config, run=replace(config.run, seed=seed, dir=str(folder)))
