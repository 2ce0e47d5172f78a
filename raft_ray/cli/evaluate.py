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
        str, typer.Argument(metavar="MODEL|CONFIG", help="Model folder or hub name, run folder, preset or YAML file.")
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
    a run folder (whose trained model it is), or a config with --model.

    [bold]Examples[/bold]
      raft-ray eval ./my-model
      raft-ray eval ./my-model --base HuggingFaceTB/SmolLM3-3B eval.ifeval_rows=50
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
    if measured != config.model.path:  # which the evaluation looks at itself
        from raft_ray import models

        folder = models.resolve(measured)
        models.check_weights(folder, config.model)
        models.load_chat(folder, config.model)
    from actors.run import evaluate_model

    evaluate_model(config, measured, base=origin)
    say("results", Path(config.run.dir) / "eval.json")


def _read(
    target: str, overrides: list[str], model: str | None, base: str | None, run_dir: str | None
) -> tuple[Config, str, str | None]:
    """The settings to measure with, the model to measure, and the base that it came from, if that is known.

    Raises `ConfigError` for an option that does not go with the argument.
    """
    if Path(target).is_dir() and not any((Path(target) / name).is_file() for name in ("config.json", "config.yaml")):
        raise ConfigError(
            f"{target}: holds neither a model (config.json) nor a run (config.yaml); an adapter is to be merged with "
            "its model first"
        )
    if _is_model(target):
        if model is not None:
            raise ConfigError(
                f"--model {model}: goes with a config, and {target} is a model itself; leave one of them out"
            )
        name = target.rstrip("/").replace(":", "/").rsplit("/", 1)[-1] or "model"
        keys = [f"model.path={json.dumps(base or target)}", *overrides]
        config = load(PRESET, keys, run_dir=run_dir or f"runs/eval-{name}")
        return config, target, config.model.path if base is not None else None
    if base is not None:
        raise ConfigError(f"--base {base}: goes with a model, and {target} is a config; set model.path={base}")
    config = load(target, overrides, run_dir=run_dir)
    if run_dir is None:
        # Beside the run folder: a run's own eval.json compares all of its methods, and must not be overwritten.
        config.run.dir = f"{config.run.dir.rstrip('/')}-eval"
    trained = Path(target) / "model"
    return config, model or (str(trained) if trained.is_dir() else config.model.path), config.model.path


def _is_model(target: str) -> bool:
    """A folder with `config.json`, a built-in name (`embedded:`, `random:`) or a hub name with a slash."""
    path = Path(target)
    if path.is_dir():
        return (path / "config.json").is_file()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return False
    return target.startswith(("embedded:", "random:")) or target.count("/") == 1
