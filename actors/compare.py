"""The comparison: every method on the same data and seeds, evaluated on the same questions. Runs in the driver.

```
stage 1, once ──> for each seed, for each point of the grid: sft, sdft, opd, raft, ..., then fapm, wise (of sft's model)
                  ──> evaluation: the base and every model ──> each row's point ──> compare.json, .csv, .md, .html
          seeds beyond `compare.grid_seeds`, at these points alone <──┘
```

A row that changes stage 1 refines anew, with what models wrote before out of the same cache. A training that fails is
recorded and the others go on; a resumed comparison tries it again, and takes finished trainings and evaluations as
they are. A finished training keeps its model and loses its checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.distill.storage import locate
from actors.distill.trackers import track_evaluations
from actors.evaluate.evaluation import evaluate_models, weights_folder
from actors.run import console, refined_rows, running, tell, trained
from actors.runtime.cluster import actor_options
from actors.runtime.progress import Bars
from actors.runtime.remote import get, last_line, root_cause, understood
from raft_ray.compare.charts import Traces
from raft_ray.compare.comparison import BASE
from raft_ray.compare.comparison import compare as summarise
from raft_ray.compare.given import changed, check_given
from raft_ray.compare.output import write_comparison
from raft_ray.compare.plan import DERIVED, SOURCE, Training, at_points, by_seeds, left_out, main_row, plan
from raft_ray.compare.tuning import ONLY, Tuned, choose, split, tune
from raft_ray.compare.verdict import verdict
from raft_ray.config import Config, ModelConfig
from raft_ray.config.references import shown
from raft_ray.config.resume import check_same_run
from raft_ray.data import RowTable
from raft_ray.errors import RaftError
from raft_ray.evaluate.ifeval import measure_against_base
from raft_ray.evaluate.kept import forget
from raft_ray.files import write_whole
from raft_ray.interrupts import interrupts
from raft_ray.models import source
from raft_ray.preflight import Prepared, preflight
from raft_ray.printable import plain
from raft_ray.report.files import Run, read_evaluation, read_metrics
from raft_ray.runs.records import steps_done

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
            if training.config and (training.model.exists() or steps_done(training.folder)):
                check_same_run(training.config, training.folder, longer=False)
    own = [(training.config, training.folder) for training in trainings if training.config]
    configs = [each for each, _ in own]
    prepared = preflight(config, trains=bool(configs), others=configs)
    check_given(config, prepared.folder)
    what = None if configs else f"comparison of {len(trainings)} models on {plain(config.data.test)}"
    asked = _asked(config, prepared)
    if len({(training.row, training.point) for training in trainings}) > len({training.row for training in trainings}):
        split(asked, config.compare.validation, config.run.seed)  # fails now rather than after all training
    with running(config, prepared, what, configs, own, refines=bool(configs)) as (bars, run_dir):
        _forget(trainings, run_dir)
        if rest := left_out(config):
            console.print(f"not in compare.methods, so not trained: {plain(', '.join(rest))}", highlight=False)
        rows = refined_rows(config, prepared, bars, run_dir) if configs else prepared.train
        work = _Work(config, prepared, bars, run_dir, rows)
        trainings, others = by_seeds(trainings, config.compare)
        grid = work.done(trainings)
        chosen = choose(grid, config.compare.validation, config.run.seed)
        if further := at_points(others, chosen):
            trainings += further
            grid = work.done(trainings)
    tuned = tune(grid, chosen, config.compare.validation, config.run.seed)
    comparison = summarise(tuned, main=main_row(config), seed=config.run.seed)
    traces = _traces(main_row(config), trainings, tuned, run_dir)
    page = write_comparison(run_dir, comparison, work.failed, _facts(config, asked, tuned), traces)
    for line in verdict(comparison, work.failed):
        console.print(plain(line), highlight=False)
    return page


class _Work:
    """Trains and evaluates, and knows what that has left so far."""

    def __init__(self, config: Config, prepared: Prepared, bars: Bars, run_dir: Path, rows: RowTable) -> None:
        self.failed: dict[str, str] = {}
        """Reason by training, or by row whose stage 1 failed."""
        self._config, self._prepared, self._bars, self._run_dir = config, prepared, bars, run_dir
        self._rows = rows
        self._rows_of: dict[str, RowTable | None] = {}
        self._folders = {BASE: prepared.folder}
        self._tracked: set[str] = set()
        """Trainings whose evaluations are in the trackers."""

    def done(self, trainings: list[Training]) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Train and evaluate what has not been; returns the evaluations of all seeds by row and point, the base's too.

        Raises `RaftError` where all have failed.
        """
        for number, training in enumerate(trainings):
            self._bars.update("All trainings", number, len(trainings), training.name)
            if training.name not in self._folders | self.failed:
                self._train(training)
        self._bars.update("All trainings", len(trainings), len(trainings))
        blocks = self._evaluated()
        untracked = {each.name: (each.config, each.folder) for each in trainings if each.config and each.name in blocks}
        untracked = {name: each for name, each in untracked.items() if name not in self._tracked}
        tell(track_evaluations(untracked, blocks, self._run_dir))
        self._tracked |= untracked.keys()
        grid: dict[str, dict[str, list[dict[str, Any]]]] = {BASE: {ONLY: [blocks[BASE]]}} if BASE in blocks else {}
        for training in trainings:
            if training.name in blocks:
                grid.setdefault(training.row, {}).setdefault(training.point, []).append(blocks[training.name])
        if not grid.keys() - {BASE}:
            raise RaftError(f"no method could be compared: {'; '.join(f'{k}: {v}' for k, v in self.failed.items())}")
        return grid

    def _train(self, training: Training) -> None:
        row, config = training.row, training.config
        if row not in self._rows_of:
            self._rows_of[row] = self._rows
            if training.refines:  # Beside the main rows, to share their cache.
                assert config is not None, "derived rows have no overrides"
                refined = partial(refined_rows, config, self._prepared, self._bars, self._run_dir, f"refined-{row}")
                self._rows_of[row] = _tried(row, self.failed, refined)
        rows = self._rows_of[row]
        if rows is not None and (folder := _tried(training.name, self.failed, partial(self._model, training, rows))):
            self._folders[training.name] = folder

    def _model(self, training: Training, rows: RowTable) -> str:
        """The folder of one training's model."""
        config = training.config
        if training.given:
            return training.given
        if config is None:
            return self._derive(training)
        folder = trained(config, self._prepared, rows, self._bars, self._run_dir, training.folder, training.name)
        try:
            # Four times the model each; with a grid and seeds they would fill the disk.
            locate(config, training.folder).clear()
        except RaftError as error:
            console.print(f"[yellow]{plain(training.name)}[/]: its checkpoints stay: {plain(error)}", highlight=False)
        return folder

    def _derive(self, training: Training) -> str:
        """The model of a derived row."""
        config, out, source = self._config, training.model, training.source
        assert source is not None
        if out.exists():
            return str(out)
        tuned, does = source.model, DERIVED[training.row]
        if not tuned.is_dir():
            raise RaftError(f"{training.row} {does} the model of {SOURCE}, which failed")
        self._bars.update(f"{training.name}: {does}", 0, 1)
        training.folder.mkdir(parents=True, exist_ok=True)
        options = actor_options(role="evaluate", num_cpus=config.teacher.num_cpus, num_gpus=0, threads=None)
        task = ray.remote(_derive).options(**options)
        base = (self._prepared.folder, config.model)
        ref = task.remote(base, str(tuned), str(out), config.compare.sparsity, training.alpha)
        get(ref, config.teacher.timeout, f"{training.name} (a Ray task)")
        self._bars.update(f"{training.name}: {does}", 1, 1)
        return str(out)

    def _evaluated(self) -> dict[str, dict[str, Any]]:
        """Each model's part of `eval.json`: some at once, and one at a time where one of them cannot be evaluated."""
        path = self._run_dir / "eval.json"
        done: dict[str, Any] = read_evaluation(path)["methods"] if path.exists() else {}
        missing = {
            name: folder for name, folder in self._folders.items() if name not in done and name not in self.failed
        }
        names = list(missing)
        # Some at once, with one start of the engines; what is done by then outlives an interruption.
        for group in (names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)):
            models = {name: missing[name] for name in group}
            problems: dict[str, str] = {}
            found = _tried("evaluation", problems, partial(self._measure, models, BASE in done))
            if found is not None:
                done.update(found)
            else:
                console.print(f"[yellow]{plain(problems['evaluation'])}[/]: these models are evaluated one at a time")
                for name, folder in models.items():
                    one = partial(self._measure, {name: folder}, BASE in done)
                    done.update(_tried(name, self.failed, one) or {})
            # With what an earlier comparison in this folder measured of rows that this one leaves out.
            if done:
                measure_against_base(done, self._config.run.seed)
                text = json.dumps({"main": main_row(self._config), "methods": done}, indent=1, ensure_ascii=False)
                write_whole(path, text, errors="replace")
                forget(self._run_dir)
        return {name: block for name, block in done.items() if name in self._folders}

    def _measure(self, models: dict[str, str], asked: bool) -> dict[str, Any]:
        """Evaluations of these models and of the base, which drift and distance are measured against. `asked`: it has
        been evaluated before, and its answers are known."""
        answers = self._run_dir / "base_answers.json"
        if not asked:
            answers.unlink(missing_ok=True)
        return evaluate_models(
            {BASE: self._folders[BASE], **models},
            self._config,
            self._prepared.test,
            lambda what, part, total: self._bars.update(f"Evaluate: {what}", part, total),
            answers,
        )


def _forget(trainings: list[Training], run_dir: Path) -> None:
    """Take out of `eval.json` what is to be trained anew, since its folder was removed, what was derived of it, and
    given models that are others now."""
    path = run_dir / "eval.json"
    if not path.exists():
        return
    kept = read_evaluation(path)
    before = len(kept["methods"])
    for training in trainings:
        if training.source and not training.source.model.exists():
            shutil.rmtree(training.folder, ignore_errors=True)
        block = kept["methods"].get(training.name)
        if block is not None and (changed(training, block, path) if training.given else not training.model.exists()):
            del kept["methods"][training.name]
    if not kept["methods"]:
        path.unlink()
    elif len(kept["methods"]) < before:
        write_whole(path, json.dumps(kept, indent=1, ensure_ascii=False))


def _traces(main: str, trainings: list[Training], tuned: Tuned, run_dir: Path) -> Traces:
    """Of each method the metrics of its first seed at its point, and its evaluation."""
    metrics: dict[str, list[dict[str, Any]]] = {}
    for training in trainings:
        shown = tuned.chosen.get(training.row, training.point) == training.point
        path = training.folder / "metrics.jsonl"
        if shown and training.row not in metrics and path.exists():
            metrics[training.row] = read_metrics(path)
    run = Run(run_dir, main, None, metrics)
    return Traces(run, {name: blocks[0] for name, blocks in tuned.methods.items()})


def _derive(base: tuple[str, ModelConfig], tuned: str, out: str, sparsity: float, alpha: float | None) -> None:
    from raft_ray.compare.fapm import prune_folder
    from raft_ray.compare.wise import interpolate_folder

    if alpha is None:
        prune_folder(weights_folder(*base), tuned, out, sparsity)
    else:
        interpolate_folder(weights_folder(*base), tuned, out, alpha)


def _tried(name: str, failed: dict[str, str], work: Callable[[], Any]) -> Any:
    """What `work` returns; none if it fails, with the reason recorded under `name`."""
    try:
        return work()
    # Whatever stops one method must not lose the hours that went into the others.
    except Exception as error:
        if interrupts.received is not None:
            raise
        failed[name] = str(understood(error) or last_line(root_cause(error)))
        console.print(f"[red]{plain(name)} failed[/]: {plain(failed[name])}", highlight=False)
        return None


def _asked(config: Config, prepared: Prepared) -> int:
    """How many test questions each model is asked."""
    questions = len(prepared.test or [])
    return questions if config.eval.domain_rows is None else min(questions, config.eval.domain_rows)


def _facts(config: Config, asked: int, tuned: Tuned) -> dict[str, str]:
    facts = {
        "main row": main_row(config),
        "model": shown(source(config.model)),
        "data": shown(config.data.train),
        "test questions": str(asked - tuned.questions),
        "seeds": ", ".join(map(str, config.compare.seeds)),
    }
    if config.compare.grid:
        if (whole := config.compare.grid_seeds) and whole < len(config.compare.seeds):
            facts["seeds"] += f" ({', '.join(map(str, config.compare.seeds[:whole]))} for the whole grid)"
        facts["grid"] = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in config.compare.grid.items())
        facts["validation questions"] = str(tuned.questions)
    return facts
