"""The comparison: every method on the same data and seeds, evaluated on the same questions. Runs in the driver.

```
stage 1, once ──> for each seed, for each point of the grid: sft, sdft, opd, raft, ..., then fapm (prunes sft's model)
                  ──> evaluation: the base and every model ──> compare.json, .csv, .md, .html
```

A row that changes stage 1 refines anew, with what models wrote before out of the same cache. A training that fails is
put down and the others go on; a resumed comparison tries it again, and takes finished trainings and evaluations as
they are. A finished training keeps its model and loses its checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.cluster import actor_options
from actors.evaluate import evaluate, weights_folder
from actors.progress import Bars
from actors.remote import get, last_line, root_cause
from actors.run import console, refined_rows, running, trained
from actors.storage import locate
from raft_ray.compare.charts import Traces
from raft_ray.compare.output import write_comparison
from raft_ray.compare.plan import FAPM, PRUNED, Training, left_out, plan
from raft_ray.compare.summary import BASE
from raft_ray.compare.summary import compare as summarise
from raft_ray.compare.tuning import ONLY, Tuned, split, tune
from raft_ray.compare.verdict import verdict
from raft_ray.config import Config
from raft_ray.data import Row
from raft_ray.errors import RaftError
from raft_ray.preflight import Prepared, preflight
from raft_ray.records import steps_done
from raft_ray.report.files import Run, read_metrics
from raft_ray.settings import check_same_run

TOGETHER = 8
"""Models that are evaluated together."""


def compare(config: Config) -> Path:
    """Train and evaluate what `compare.*` names. Returns the path of `compare.html`.

    Raises `RaftError` if nothing at all could be trained and evaluated.
    """
    run_dir = Path(config.run.dir).absolute()
    trainings = plan(config, run_dir)
    if config.run.resume:
        for training in trainings:
            if training.config and steps_done(training.folder):
                check_same_run(training.config, training.folder, longer=False)
    prepared = preflight(config)
    asked = _asked(config, prepared)
    if len({training.point for training in trainings}) > 1:
        split(asked, config.compare.validation, config.run.seed)  # fails now rather than after all training
    failed: dict[str, str] = {}
    _forget(trainings, run_dir)
    with running(config, prepared, others=filter(None, (one.config for one in trainings))) as (bars, run_dir):
        if rest := left_out(config):
            console.print(f"not in compare.methods, so not trained: {', '.join(rest)}", highlight=False)
        rows = refined_rows(config, prepared, bars, run_dir)
        rows_of: dict[str, list[Row] | None] = {}
        folders = {BASE: prepared.folder}
        for number, training in enumerate(trainings):
            bars.update("All trainings", number, len(trainings), training.name)
            if training.row not in rows_of:
                own = partial(_own_rows, training, prepared, bars, run_dir)
                rows_of[training.row] = _tried(training.row, failed, own) if training.refines else rows
            if (found := rows_of[training.row]) is None:
                continue
            folder = _tried(training.name, failed, partial(_train, training, config, prepared, found, bars))
            if folder is not None:
                folders[training.name] = folder
        bars.update("All trainings", len(trainings), len(trainings))
        blocks = _evaluate(folders, config, prepared, bars, run_dir, failed)
    grid: dict[str, dict[str, list[dict[str, Any]]]] = {BASE: {ONLY: [blocks[BASE]]}} if BASE in blocks else {}
    for training in trainings:
        if training.name in blocks:
            grid.setdefault(training.row, {}).setdefault(training.point, []).append(blocks[training.name])
    if not grid.keys() - {BASE}:
        raise RaftError(f"no method could be compared: {'; '.join(f'{k}: {v}' for k, v in failed.items())}")
    tuned = tune(grid, config.compare.validation, config.run.seed)
    comparison = summarise(tuned, seed=config.run.seed)
    traces = _traces(trainings, tuned, run_dir)
    page = write_comparison(run_dir, comparison, failed, _facts(config, asked, tuned), traces)
    for line in verdict(comparison, failed):
        console.print(line, highlight=False)
    return page


def _forget(trainings: list[Training], run_dir: Path) -> None:
    """Take out of `eval.json` what is to be trained anew, since its folder was removed, and what was pruned of it."""
    path = run_dir / "eval.json"
    if not path.exists():
        return
    kept = json.loads(path.read_text())
    for training in trainings:
        if training.config is None and not _pruned(training, run_dir).exists():
            shutil.rmtree(training.folder, ignore_errors=True)
        if not (training.folder / "model").exists():
            kept["methods"].pop(training.name, None)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False))


def _pruned(training: Training, run_dir: Path) -> Path:
    """The model that a training of FAPM prunes."""
    return run_dir / "methods" / PRUNED / training.point / training.folder.name / "model"


def _own_rows(training: Training, prepared: Prepared, bars: Bars, run_dir: Path) -> list[Row]:
    """The rows of a training that changes stage 1, refined beside the comparison's own so as to share their cache."""
    assert training.config is not None, "FAPM has no overrides"
    return refined_rows(training.config, prepared, bars, run_dir, f"refined-{training.row}")


def _traces(trainings: list[Training], tuned: Tuned, run_dir: Path) -> Traces:
    """Of each method the metrics of its first seed at its point, and its evaluation."""
    metrics: dict[str, list[dict[str, Any]]] = {}
    for training in trainings:
        shown = tuned.chosen.get(training.row, training.point) == training.point
        path = training.folder / "metrics.jsonl"
        if shown and training.row not in metrics and path.exists():
            metrics[training.row] = read_metrics(path)
    run = Run(run_dir, "raft", None, metrics)
    return Traces(run, {name: blocks[0] for name, blocks in tuned.methods.items()})


def _train(training: Training, config: Config, prepared: Prepared, rows: list[Row], bars: Bars) -> str:
    """The folder of one training's model."""
    if training.config is not None:
        folder = trained(training.config, prepared, rows, bars, training.folder, training.name)
        try:
            # Four times the model each; with a grid and seeds they would fill the disk.
            locate(training.config, training.folder).clear()
        except RaftError as error:
            console.print(f"[yellow]{training.name}[/]: its checkpoints stay: {error}", highlight=False)
        return folder
    out = training.folder / "model"
    if out.exists():
        return str(out)
    tuned = _pruned(training, Path(config.run.dir).absolute())
    if not tuned.is_dir():
        raise RaftError(f"{FAPM} prunes the model of {PRUNED}, which failed")
    bars.update(f"{training.name}: prune", 0, 1)
    training.folder.mkdir(parents=True, exist_ok=True)
    options = actor_options(role="evaluate", num_cpus=config.teacher.num_cpus, num_gpus=0, threads=None)
    task = ray.remote(_prune).options(**options)
    ref = task.remote(prepared.folder, str(tuned), str(out), config.compare.sparsity)
    get(ref, config.teacher.timeout, f"{training.name} (a Ray task)")
    bars.update(f"{training.name}: prune", 1, 1)
    return str(out)


def _prune(base: str, tuned: str, out: str, sparsity: float) -> None:
    from raft_ray.prune import prune_folder

    prune_folder(weights_folder(base), tuned, out, sparsity)


def _evaluate(
    folders: dict[str, str], config: Config, prepared: Prepared, bars: Bars, run_dir: Path, failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Each model's part of `eval.json`: some at once, and one at a time where one of them cannot be evaluated."""
    path, answers = run_dir / "eval.json", run_dir / "base_answers.json"
    done: dict[str, Any] = json.loads(path.read_text())["methods"] if config.run.resume and path.exists() else {}
    missing = {name: folder for name, folder in folders.items() if name not in done}

    def measure(models: dict[str, str]) -> dict[str, Any]:
        # Drift and distance are measured against the base, which takes part each time and is asked once.
        if BASE not in done:
            answers.unlink(missing_ok=True)
        return evaluate(
            {BASE: folders[BASE], **models},
            config,
            prepared.test,
            lambda what, part, total: bars.update(f"Evaluate: {what}", part, total),
            answers,
        )

    for models in _batches(missing):
        problems: dict[str, str] = {}
        found = _tried("evaluation", problems, partial(measure, models))
        if found is not None:
            done.update(found)
        else:
            console.print(f"[yellow]{problems['evaluation']}[/]: these models are evaluated one at a time")
            for name, folder in models.items():
                done.update(_tried(name, failed, partial(measure, {name: folder})) or {})
        # With what an earlier comparison in this folder measured of rows that this one leaves out.
        path.write_text(json.dumps({"main": "raft", "methods": done}, indent=1, ensure_ascii=False))
    return {name: block for name, block in done.items() if name in folders}


def _batches(folders: dict[str, str]) -> Iterator[dict[str, str]]:
    """Models to evaluate with one start of the engines; what is done by then outlives an interruption."""
    names = list(folders)
    for start in range(0, len(names), TOGETHER):
        yield {name: folders[name] for name in names[start : start + TOGETHER]}


def _tried(name: str, failed: dict[str, str], work: Callable[[], Any]) -> Any:
    """What `work` returns; none if it fails, with the reason put down under `name`."""
    try:
        return work()
    # Whatever stops one method must not lose the hours that went into the others.
    except Exception as error:
        failed[name] = last_line(root_cause(error))
        console.print(f"[red]{name} failed[/]: {failed[name]}", highlight=False)
        return None


def _asked(config: Config, prepared: Prepared) -> int:
    """How many test questions each model is asked."""
    questions = len(prepared.test or [])
    return questions if config.eval.domain_rows is None else min(questions, config.eval.domain_rows)


def _facts(config: Config, asked: int, tuned: Tuned) -> dict[str, str]:
    facts = {
        "model": config.model.path,
        "data": config.data.train,
        "test questions": str(asked - tuned.questions),
        "seeds": ", ".join(map(str, config.compare.seeds)),
    }
    if config.compare.grid:
        facts["grid"] = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in config.compare.grid.items())
        facts["validation questions"] = str(tuned.questions)
    return facts
