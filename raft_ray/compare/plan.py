"""Which trainings a comparison consists of, and the config of each.

Knows nothing about Ray: configs in, configs out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from raft_ray.checks import check
from raft_ray.compare.comparison import BASE
from raft_ray.compare.tuning import ONLY
from raft_ray.config import CompareConfig, Config, Method, settings
from raft_ray.config.checks import SHARED
from raft_ray.errors import ConfigError
from raft_ray.models import given

FAPM, WISE = "fapm", "wise"
DERIVED = {FAPM: "prunes", WISE: "interpolates"}
"""Rows that are made of another row's model, without training, and what they do with it."""
SOURCE = Method.sft.value
"""The row whose model they take."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_POINT = re.compile(r"[\w .,+=()\[\]-]*")

_METHODS = [method.value for method in Method]

_SHARED = tuple(section for section in SHARED if section != "refine")
"""Sections in which rows cannot differ. Stage 1 may: a row that changes it gets refined rows of its own."""


@dataclass(frozen=True)
class Training:
    """One row of the comparison, at one point of the grid, with one seed."""

    row: str
    point: str
    """`lr=0.0001,max_steps=64`: the values of `compare.grid`, and `wise`'s `alpha=0.5`; blank without any."""
    seed: int
    folder: Path
    """Its run folder, with the model in `model/` unless it is given."""
    config: Config | None
    """None for a derived or given row, which trains nothing."""
    refines: bool = False
    """Stage 1 is not the comparison's own."""
    source: Training | None = None
    """Of a derived row: the training whose model it takes."""
    alpha: float | None = None
    """Of `wise`: the tuned model's share."""
    given: str | None = None
    """Of a row that was trained elsewhere (`compare.models`): the name of its model (`raft_ray.models.sources`)."""

    @property
    def model(self) -> Path:
        """Where its model lies, or will."""
        return Path(self.given) if self.given else self.folder / "model"

    @property
    def name(self) -> str:
        """For messages and for `eval.json`."""
        return "/".join(filter(None, [self.row, self.point, f"seed{self.seed}"]))


def plan(config: Config, run_dir: Path) -> list[Training]:
    """Every training, seed by seed, so that an interrupted comparison has whole seeds; after them those made of their
    models. Rows of `compare.models` come first.

    Raises `ConfigError` naming the key under `compare` for what cannot be trained.
    """
    wanted = config.compare
    rows, seeds = wanted.methods, wanted.seeds
    for unfit, message in (
        (not rows and not wanted.models, "compare.methods is empty; name at least one, or models that are there"),
        (not seeds, "compare.seeds is empty; name at least one"),
        (len(set(rows)) < len(rows), f"compare.methods={rows}: names one twice"),
        (len(set(seeds)) < len(seeds), f"compare.seeds={seeds}: names one twice"),
        (min(seeds, default=0) < 0, f"compare.seeds={seeds}: must be at least 0"),
        *(
            (
                row in rows and SOURCE not in rows,
                f"compare.methods={rows}: {row} {does} the model of {SOURCE}; name {SOURCE} as well",
            )
            for row, does in DERIVED.items()
        ),
        (
            WISE in rows and not wanted.alphas,
            "compare.alphas is empty; name at least one, such as 0.5, or leave wise out of compare.methods",
        ),
        (len(set(map(_shown, wanted.alphas))) < len(wanted.alphas), f"compare.alphas={wanted.alphas}: names one twice"),
        (
            not config.eval.enabled,
            "eval.enabled=false: there is nothing to compare without an evaluation; leave it on",
        ),
    ):
        if unfit:
            raise ConfigError(message)
    for name, folders in wanted.models.items():
        if name in rows or name in wanted.overrides or name in (*_METHODS, *DERIVED):
            raise ConfigError(f"compare.models.{name}: is the name of a row that trains; choose another")
        if not folders:
            raise ConfigError(f"compare.models.{name}: is empty; name a folder per seed")
    for key, names in (
        ("compare.methods", rows),
        ("compare.models", wanted.models),
        ("compare.overrides", wanted.overrides),
    ):
        for name in names:
            if not _NAME.fullmatch(str(name)) or name == BASE:
                why = "the base is a row already" if name == BASE else "it names a folder: letters, digits, . _ - only"
                raise ConfigError(f"{key}: {name!r} cannot be the name of a row ({why}); choose another")
    for name in left_out(config):
        own = wanted.overrides[name]
        distill = own.get("distill") if isinstance(own, dict) else None
        if name not in _METHODS and not (isinstance(distill, dict) and "method" in distill):
            raise ConfigError(f"compare.overrides.{name}: no such row in compare.methods={rows}")
        _row_config(config, name, {})
    points = grid_points(wanted.grid)
    configs = {(row, point): _row_config(config, row, values) for point, values in points.items() for row in rows}
    trainings = [
        Training(row, ONLY, seed, run_dir / "methods" / row / f"seed{seed}", None, given=given(folder, config.model))
        for row, folders in wanted.models.items()
        for seed, folder in enumerate(folders)
    ]
    for seed in wanted.seeds:
        trained = []
        for (row, point), made in configs.items():
            if made is not None:
                folder = run_dir / "methods" / row / point / f"seed{seed}"
                own = replace(made, run=replace(made.run, seed=seed, dir=str(folder)))
                refines = "refine" in (wanted.overrides.get(row) or {})
                trained.append(Training(row, point, seed, folder, own, refines))
        trainings += trained
        for source in (one for one in trained if one.row == SOURCE):
            for row in (row for row in rows if row in DERIVED):
                for alpha in wanted.alphas if row == WISE else [None]:
                    share = [] if alpha is None else [f"alpha={_shown(alpha)}"]
                    point = ",".join(filter(None, [source.point, *share]))
                    folder = run_dir / "methods" / row / point / f"seed{seed}"
                    trainings.append(Training(row, point, seed, folder, None, source=source, alpha=alpha))
    return trainings


def main_row(config: Config) -> str:
    """The row that the comparison is about: the config's method, or the first row where that is not compared."""
    method = config.distill.method.value
    return method if method in config.compare.methods else [*config.compare.methods, *config.compare.models][0]


def by_seeds(trainings: list[Training], compare: CompareConfig) -> tuple[list[Training], list[Training]]:
    """Those of the seeds that train the whole grid (`compare.grid_seeds`), with what is given, and those of the
    other seeds."""
    whole = compare.seeds[: compare.grid_seeds]
    first = [one for one in trainings if one.given or one.seed in whole]
    return first, [one for one in trainings if one not in first]


def at_points(trainings: list[Training], chosen: Mapping[str, str]) -> list[Training]:
    """Those at their row's chosen point, with the models that derived rows take at their own."""
    wanted = [one for one in trainings if chosen.get(one.row) == one.point]
    return [one for one in trainings if one in wanted or any(one == each.source for each in wanted)]


def left_out(config: Config) -> list[str]:
    """Rows that `compare.overrides` describes and `compare.methods` does not name."""
    return [name for name in config.compare.overrides if name not in config.compare.methods]


def grid_points(grid: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every combination of the grid's values, by the name of its point. Raises `ConfigError`."""
    for key, values in grid.items():
        where = f"compare.grid.{key}"
        if key.count(".") != 1 or key.split(".")[0] in (*SHARED, "compare"):
            raise ConfigError(f"{where}: name a key that methods are trained with, such as learner.lr")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}={values}: must be a list of values, such as [1e-4, 2e-4]")
        if unfit := [value for value in values if not _POINT.fullmatch(_shown(value))]:
            raise ConfigError(
                f"{where}: {unfit[0]!r} cannot be part of a folder's name; compare such values as rows of their own, "
                "with compare.overrides"
            )
        if len({_shown(value) for value in values}) < len(values):
            raise ConfigError(f"{where}={values}: names one twice")
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    names = [",".join(f"{key.split('.')[1]}={_shown(value)}" for key, value in one.items()) for one in combinations]
    return dict(zip(names, combinations, strict=True)) if grid else {ONLY: {}}


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row_config(config: Config, row: str, point: dict[str, Any]) -> Config | None:
    overrides = copy.deepcopy(config.compare.overrides.get(row) or {})
    where = f"compare.overrides.{row}"
    if row in DERIVED:
        if overrides:
            key = "compare.sparsity" if row == FAPM else "compare.alphas"
            raise ConfigError(f"{where}: {row} trains nothing; set {key}")
        return None
    if not isinstance(overrides, dict) or not all(isinstance(values, dict) for values in overrides.values()):
        raise ConfigError(f"{where}: must hold sections, such as {{learner: {{lr: 1e-4}}}}")
    for section in overrides:
        if section in (*_SHARED, "compare"):
            raise ConfigError(f"{where}.{section}: cannot differ; all rows of a comparison share it")
    for section, key, value in ((*name.split("."), value) for name, value in point.items()):
        if key in overrides.setdefault(section, {}):
            raise ConfigError(f"{where}.{section}.{key}: compare.grid names its values; leave one of them out")
        overrides[section][key] = value
    method = _method(row, overrides, where)
    own = replace(config, run=replace(config.run, baselines=[], overrides={method: overrides}))
    try:
        made = settings.for_method(own, method)
        check(made)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'run.overrides.{method}: ')}") from error
    return made


def _method(row: str, overrides: dict[str, Any], where: str) -> str:
    """The method that a row trains: its name, or what its overrides say."""
    said = overrides.get("distill", {}).pop("method", None)
    if row in _METHODS:
        if said not in (None, row):
            raise ConfigError(f"{where}.distill.method={said}: give the row another name than that of a method")
        return row
    if said not in _METHODS:
        raise ConfigError(
            f"compare.methods: {row} is no method ({', '.join([*_METHODS, *DERIVED])}); "
            f"say what it trains with {where}.distill.method"
        )
    return str(said)
