"""The comparison: every method on the same data and seeds, evaluated on the same questions. Runs in the driver.

```
stage 1, once ──> for each seed: sft, sdft, opd, raft, ... (trained one after the other), fapm (prunes sft's model)
                  ──> evaluation, once: the base and every model ──> compare.json, .csv, .md, .html
```

A training that fails is put down and the others go on; a resumed comparison tries it again, and takes finished
trainings and evaluations as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.cluster import actor_options
from actors.evaluate import _get, evaluate, weights_folder
from actors.progress import Bars
from actors.run import _refined, _root, _running, _trained, console
from raft_ray import settings
from raft_ray.compare.output import write_comparison
from raft_ray.compare.plan import FAPM, PRUNED, Training, plan
from raft_ray.compare.summary import BASE
from raft_ray.compare.summary import compare as summarise
from raft_ray.compare.verdict import verdict
from raft_ray.config import Config
from raft_ray.data import Row
from raft_ray.errors import RaftError
from raft_ray.preflight import Prepared, preflight


def compare(config: Config) -> Path:
    """Train and evaluate what `compare.*` names. Returns the path of `compare.html`.

    Raises `RaftError` if nothing at all could be trained and evaluated.
    """
    run_dir = Path(config.run.dir).absolute()
    trainings = plan(config, run_dir)
    prepared = preflight(config)
    if config.run.ray_address is None and config.run.local_cpus is None:
        needs = [settings.required_resources(training.config)[0] for training in trainings if training.config]
        config.run.local_cpus = math.ceil(max(needs))
    failed: dict[str, str] = {}
    with _running(config, prepared) as (bars, run_dir):
        rows = _refined(config, prepared, bars, run_dir)
        folders = {BASE: prepared.folder}
        for training in trainings:
            folder = _tried(training.name, failed, partial(_train, training, config, prepared, rows, bars))
            if folder is not None:
                folders[training.name] = folder
        blocks = _evaluate(folders, config, prepared, bars, run_dir, failed)
    methods: dict[str, list[dict[str, Any]]] = {BASE: [blocks[BASE]]} if BASE in blocks else {}
    for training in trainings:
        if training.name in blocks:
            methods.setdefault(training.row, []).append(blocks[training.name])
    if not methods.keys() - {BASE}:
        raise RaftError(f"no method could be compared: {'; '.join(f'{k}: {v}' for k, v in failed.items())}")
    comparison = summarise(methods, seed=config.run.seed)
    page = write_comparison(run_dir, comparison, failed, _facts(config, prepared))
    for line in verdict(comparison, failed):
        console.print(line, highlight=False)
    return page


def _train(training: Training, config: Config, prepared: Prepared, rows: list[Row], bars: Bars) -> str:
    """The folder of one training's model."""
    if training.config is not None:
        return _trained(training.config, prepared, rows, bars, training.folder)
    out = training.folder / "model"
    if out.exists():
        return str(out)
    tuned = training.folder.parents[1] / PRUNED / training.folder.name / "model"
    if not tuned.is_dir():
        raise RaftError(f"{FAPM} prunes the model of {PRUNED}, which failed")
    bars.update(f"{training.name}: prune", 0, 1)
    training.folder.mkdir(parents=True, exist_ok=True)
    options = actor_options(role="evaluate", num_cpus=config.teacher.num_cpus, num_gpus=0, threads=None)
    task = ray.remote(_prune).options(**options)
    ref = task.remote(prepared.folder, str(tuned), str(out), config.compare.sparsity)
    _get(ref, config.teacher.timeout, f"{training.name} (a Ray task)")
    bars.update(f"{training.name}: prune", 1, 1)
    return str(out)


def _prune(base: str, tuned: str, out: str, sparsity: float) -> None:
    from raft_ray.prune import prune_folder

    prune_folder(weights_folder(base), tuned, out, sparsity)


def _evaluate(
    folders: dict[str, str], config: Config, prepared: Prepared, bars: Bars, run_dir: Path, failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Each model's part of `eval.json`: all at once, and one at a time if one of them cannot be evaluated."""
    path = run_dir / "eval.json"
    done: dict[str, Any] = json.loads(path.read_text())["methods"] if config.run.resume and path.exists() else {}
    blocks = {name: block for name, block in done.items() if name in folders}
    missing = {name: folder for name, folder in folders.items() if name not in blocks}

    def measure(models: dict[str, str]) -> dict[str, Any]:
        # Drift and distance are measured against the base, which takes part each time.
        return evaluate(
            {BASE: folders[BASE], **models},
            config,
            prepared.test,
            lambda what, part, total: bars.update(f"Evaluate: {what}", part, total),
        )

    if missing:
        problems: dict[str, str] = {}
        found = _tried("evaluation", problems, partial(measure, missing))
        if found is not None:
            blocks.update(found)
        else:
            console.print(f"[yellow]{problems['evaluation']}[/]: the models are evaluated one at a time")
            for name, folder in missing.items():
                blocks.update(_tried(name, failed, partial(measure, {name: folder})) or {})
    path.write_text(json.dumps({"main": "raft", "methods": blocks}, indent=1, ensure_ascii=False))
    return blocks


def _tried(name: str, failed: dict[str, str], work: Callable[[], Any]) -> Any:
    """What `work` returns; none if it fails, with the reason put down under `name`."""
    try:
        return work()
    # Whatever stops one method must not lose the hours that went into the others.
    except Exception as error:
        failed[name] = _root(error)
        console.print(f"[red]{name} failed[/]: {failed[name]}", highlight=False)
        return None


def _facts(config: Config, prepared: Prepared) -> dict[str, str]:
    return {
        "model": config.model.path,
        "data": config.data.train,
        "test questions": str(len(prepared.test or [])),
        "seeds": ", ".join(map(str, config.compare.seeds)),
    }
