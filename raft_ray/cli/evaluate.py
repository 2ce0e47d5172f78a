"""`raft-ray eval`: measures a model, or the model that a config (preset, YAML file, run folder) names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raft_ray.checks import check
from raft_ray.cli.app import Overrides, RunDir, command, load, say
from raft_ray.config import Config
from raft_ray.config.resume import keep_date
from raft_ray.errors import ConfigError
from raft_ray.runs.folders import check_run_dir

PRESET = "raft"
"""Whose settings a model alone is measured with."""


@command("eval")
def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|CONFIG", help="Model, adapter or run folder, hub name, preset or YAML file.")
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH", help="With a CONFIG: the model; by default its run's, or model.path."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="PATH", help="With a MODEL: the model it came from, to measure what it lost."),
    ] = None,
    run_dir: RunDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an evaluation that was interrupted, with its answers.")
    ] = False,
) -> None:
    """Measure a model, alone or beside the base that it came from.

    Domain accuracy, IFEval and length; beside the base also drift and
    distance of the weights. Writes eval.json. MODEL may be a model folder,
    a peft adapter (of --base, or of the base that it names), a run folder
    (whose trained model it is), or a config with --model.

    [bold]Examples[/bold]
      raft-ray eval ./my-model
      raft-ray eval ./my-model --base HuggingFaceTB/SmolLM3-3B eval.ifeval_rows=50
      raft-ray eval ./my-adapter --base HuggingFaceTB/SmolLM3-3B
      raft-ray eval runs/demo
      raft-ray eval demo --model ./my-model
      raft-ray eval runs/demo --resume
    """
    config, measured, origin = _read(target, overrides or [], model, base, run_dir)
    if resume:
        config.run.resume = True
        if not any(key.startswith("model.date=") for key in overrides or []):
            keep_date(config)
    check(config, trains=False)
    check_run_dir(config)
    from raft_ray import models

    measured = models.given(measured, config.model)
    if measured != models.source(config.model):  # which the evaluation looks at itself
        models.check_weights(measured, config.model)
        models.load_chat(measured, config.model)
    from actors.run import evaluate_model

    evaluate_model(config, measured, base=origin)
    say("results", Path(config.run.dir) / "eval.json")


def _read(
    target: str, overrides: list[str], model: str | None, base: str | None, run_dir: str | None
) -> tuple[Config, str, str | None]:
    """The settings to measure with, the model to measure, and the base that it came from, if that is known.

    Raises `ConfigError` for an option that does not go with the argument.
    """
    holds = ("config.json", "adapter_config.json", "config.yaml")
    if Path(target).is_dir() and not any((Path(target) / name).is_file() for name in holds):
        raise ConfigError(f"{target}: holds no model (config.json), adapter (adapter_config.json) or run (config.yaml)")
    if _is_model(target):
        if model is not None:
            raise ConfigError(
                f"--model {model}: goes with a config, and {target} is a model itself; leave one of them out"
            )
        name = target.rstrip("/").replace(":", "/").rsplit("/", 1)[-1] or "model"
        keys = [f"model.path={json.dumps(base or target)}", *overrides]
        config = load(PRESET, keys, run_dir=run_dir or f"runs/eval-{name}")
        return config, target, _original(config) if base is not None else None
    if base is not None:
        raise ConfigError(f"--base {base}: goes with a model, and {target} is a config; set model.path={base}")
    config = load(target, overrides, run_dir=run_dir)
    if run_dir is None:
        # Beside the run folder: a run's own eval.json compares all of its methods, and must not be overwritten.
        config.run.dir = f"{config.run.dir.rstrip('/')}-eval"
    trained = Path(target) / "model"
    return config, model or (str(trained) if trained.is_dir() else _original(config)), _original(config)


def _original(config: Config) -> str:
    """The name of the config's own model."""
    from raft_ray.models import source

    return source(config.model)


def _is_model(target: str) -> bool:
    """A folder with a model or an adapter, a built-in name (`embedded:`, `random:`) or a hub name with a slash."""
    path = Path(target)
    if path.is_dir():
        return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return False
    return target.startswith(("embedded:", "random:")) or target.count("/") == 1
