"""Runs refinement, training, evaluation and the report in order. What the command line calls; runs in the driver.

The driver holds rows, settings and progress; models, trajectories, targets and weights never come here. Each stage
leaves its result in the run folder, and a resumed run takes up a finished stage's result instead of doing it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import TrainingFailedError
from rich.console import Console

from actors.distill.checkpoint import STATE, check_resumable, read_state
from actors.distill.learner import LearnerTask
from actors.distill.seal import KEY_FILE, make_key, read_key
from actors.distill.slots import Slots
from actors.distill.start import start_pipeline
from actors.distill.storage import check_storage, locate
from actors.distill.student_engine import try_model
from actors.distill.trackers import check_node, track_evaluations
from actors.distill.validation import check_continues
from actors.distill.worker_group import train as train_workers
from actors.evaluate.evaluation import evaluate_models
from actors.refine.flow import check_resources
from actors.refine.flow import refine as refine_rows
from actors.refine.gap import measure_gap
from actors.refine.prompts import rehearsal_prompts
from actors.runtime import attach
from actors.runtime.cluster import address_of, cluster, here, own_tmp
from actors.runtime.progress import Bars
from actors.runtime.remote import ActorLost, last_line, root_cause, understood
from actors.runtime.watch import Watch
from raft_ray import data
from raft_ray.config import Config, settings
from raft_ray.config.references import shown
from raft_ray.distill.memory import check_memory
from raft_ray.distill.order import RowOrder
from raft_ray.distill.rehearsal import encode_prompts, read_answers
from raft_ray.errors import ConfigError, RaftError
from raft_ray.evaluate.ifeval import measure_against_base
from raft_ray.evaluate.kept import forget
from raft_ray.evaluate.table import summary_table
from raft_ray.evaluate.validation import make_validation_set
from raft_ray.files import write_whole, writing
from raft_ray.machine import this_machine
from raft_ray.models import load_chat, settled, source
from raft_ray.models.prompts import EncodedRow, rows_digest
from raft_ray.preflight import Prepared, check_targets, encode, preflight
from raft_ray.printable import plain
from raft_ray.report import write_refine_report, write_report
from raft_ray.report.files import read_evaluation
from raft_ray.runs.folders import check_run_dir
from raft_ray.runs.lock import locked
from raft_ray.runs.records import missing_steps, write_event
from raft_ray.runs.trackers import check_trackers
from raft_ray.runs.trained import Trained, read_trained

console = Console(stderr=False)


def run(config: Config) -> Path:
    """Refine, train the baselines and the method, evaluate all, report. Returns the path of `report.html`."""
    baselines = {name: settings.for_method(config, name) for name in config.run.baselines}
    prepared = preflight(config, as_they_are=not config.refine.enabled, others=baselines.values())
    if config.refine.enabled and prepared.refined:
        raise ConfigError(
            f"data.train={config.data.train}: its rows are refined already; set refine.enabled=false to train on them"
        )
    methods = {name: (baseline, Path("methods", name)) for name, baseline in baselines.items()}
    methods[config.distill.method.value] = (config, Path())
    with running(config, prepared, trainings=methods.values(), refines=True) as (bars, run_dir):
        rows = refined_rows(config, prepared, bars, run_dir)
        folders = {"base": prepared.folder}
        for name, (method, place) in methods.items():
            folders[name] = trained(method, prepared, rows, bars, run_dir, place)
        if config.eval.enabled:
            result = _evaluated(config, prepared, folders, bars, run_dir)
            placed = {name: (method, run_dir / place) for name, (method, place) in methods.items()}
            tell(track_evaluations(placed, result["methods"], run_dir))
    report = write_report(run_dir)
    if (run_dir / "eval.json").exists():
        console.print(summary_table(read_evaluation(run_dir / "eval.json")))
    console.print(f"Report: {plain(report)}", highlight=False, soft_wrap=True)
    console.print(f"Model:  {plain(run_dir / 'model')}", highlight=False, soft_wrap=True)
    return report


def refine(config: Config) -> Path:
    """Stage 1 alone. Returns the folder of refined rows."""
    prepared = preflight(config, as_they_are=False, holds_out=False)
    with running(config, prepared, refines=True) as (bars, run_dir):
        _refine(config, prepared, bars, run_dir / "refined")
    if config.refine.enabled:
        console.print(f"Report: {plain(write_refine_report(run_dir))}", highlight=False, soft_wrap=True)
    return run_dir / "refined"


def train(config: Config) -> Path:
    """Stage 2 alone, on rows as they are (refined ones for RAFT). Returns the folder of the trained model."""
    prepared = preflight(config)
    check_targets(config, prepared.train)
    with running(config, prepared, trainings=[(config, Path())]) as (bars, run_dir):
        folder = trained(config, prepared, prepared.train, bars, run_dir)
    return Path(folder)


def evaluate_model(config: Config, model: str, *, base: str | None) -> dict[str, Any]:
    """Evaluate one model, beside the base that drift, weight distance and retention are measured against, if any.
    Writes `eval.json` in the run folder and returns its content."""
    prepared = preflight(config, trains=False)
    named = {"base": base, "model": model}
    folders = {name: settled(path) for name, path in named.items() if path is not None}
    if folders["model"] == folders.get("base"):
        del folders["model"]
    path = Path(config.run.dir) / "eval.json"
    if config.run.resume and path.exists():
        ours = {name: shown(folder) for name, folder in folders.items()}
        theirs = {name: block.get("model") for name, block in read_evaluation(path)["methods"].items()}
        if ours != theirs:
            raise ConfigError(
                f"{path}: was measured of {', '.join(map(str, theirs.values()))}, not of {', '.join(ours.values())}; "
                "remove that file to measure anew, or choose another folder with --run-dir"
            )
    with running(config, prepared, f"[bold]evaluation[/] of {plain(model)}") as (bars, run_dir):
        result = _evaluated(config, prepared, folders, bars, run_dir)
    console.print(summary_table(result))
    return result


@contextmanager
def running(
    config: Config,
    prepared: Prepared,
    what: str | None = None,
    others: Iterable[Config] = (),
    trainings: Iterable[tuple[Config, Path]] = (),
    refines: bool = False,
) -> Iterator[tuple[Bars, Path]]:
    """The run folder, locked, with its config, Ray, and the bars. What refuses leaves no folder behind.

    Args:
        what: goes on, for the first line; none says what is trained.
        others: of trainings beside the config's own, for which Ray must have room.
        trainings: with their places in the run folder, that are resumed if they have a checkpoint.
        refines: stage 1 runs, so that Ray must have room for its engines.
    """
    run_dir = Path(config.run.dir).absolute()
    rows = f"{len(prepared.train)} rows of {plain(config.data.train)}"
    what = what or f"[bold]{config.distill.method.value}[/] on {rows}"
    model = f"model {plain(source(config.model))} in {config.model.dtype.value}"
    others, trainings = list(others), list(trainings)
    check_trackers(tracker for one, _ in trainings for tracker in one.run.trackers)
    if prepared.train and address_of(config) is None:
        machine = this_machine()
        for one in (config, *others):
            check_memory(one, prepared.folder, prepared.teacher, machine)
    if trainings:
        check_storage(config)
    with locked(run_dir, console.print):
        # Another driver may have been at work here since it was looked at first.
        check_run_dir(config)
        for one, place in trainings if config.run.resume else ():
            _check_kept(one, run_dir / place)
        console.print(f"{what}, {model}, run folder {plain(run_dir)}", highlight=False)
        tell(prepared.notes)
        with Bars(console) as bars:
            bars.update("Ray starts", 0, 1)
            with cluster(config, *others), own_tmp(run_dir):
                bars.update("Ray starts", 1, 1)
                check_node(one for one, _ in trainings)
                if refines:
                    check_resources(config)
                settings.save(config, run_dir / "config.yaml")
                data.write_bad_rows(prepared.train.bad, run_dir / "bad_rows.jsonl")
                if bad := len(prepared.train.bad):
                    console.print(
                        f"[yellow]{plain(bad)} rows left out[/], listed in {plain(run_dir / 'bad_rows.jsonl')}"
                    )
                yield bars, run_dir


def tell(notices: Iterable[str]) -> None:
    """Show lines that one should know of."""
    for text in notices:
        console.print(f"[yellow]{plain(text)}[/]", highlight=False, soft_wrap=True)


def _check_kept(config: Config, folder: Path) -> None:
    """Refuse to resume a training with other settings than its newest checkpoint was made with, or name what has
    changed where that is allowed. Raises `RaftError`."""
    if config.run.storage is not None and not (folder / "storage.json").exists():
        return
    storage = locate(config, folder)
    if not (folder / KEY_FILE).exists() and not storage.has_any():
        return
    key = read_key(folder)
    if (name := storage.newest(key, STATE)) and (changed := read_state(storage, name, key).check_settings(config)):
        console.print(f"[yellow]{plain(folder)} goes on[/] {plain(changed)}", highlight=False)
        write_event(folder, "changed", "driver", here(), changed)


def refined_rows(config: Config, prepared: Prepared, bars: Bars, run_dir: Path, name: str = "refined") -> data.RowTable:
    """The training rows with their rewrites and fused answers, which are left in `run_dir/name`."""
    if not config.refine.enabled:
        return prepared.train
    try_model(config, prepared.folder)
    _refine(config, prepared, bars, run_dir / name, name.replace("refined", "refine"))
    return data.read_table(str(run_dir / name), config.data, split="train")


def _refine(config: Config, prepared: Prepared, bars: Bars, out: Path, phase: str = "refine") -> None:
    """Refine all rows into the folder `out`, and measure their compatibility gap for the report."""
    refine_rows(prepared.train, config, out, bars.track(f"Stage 1: {phase}"))
    if config.refine.enabled and config.refine.gap:
        measure_gap(config, out, bars.track("Stage 1: compatibility gap"))


def trained(
    config: Config,
    prepared: Prepared,
    rows: data.RowTable,
    bars: Bars,
    root: Path,
    place: Path = Path(),
    name: str | None = None,
) -> str:
    """Train one method in its place in the run folder `root`; returns the folder of its model. `name` tells it from
    others of its method."""
    run_dir = root / place
    folder = run_dir / "model"
    learner = config.learner
    order = RowOrder(len(rows), learner.global_batch_size, learner.epochs, config.run.seed, learner.max_steps)
    encoded, unfit = encode(config, prepared.folder, rows)
    if rehearsal := config.distill.rehearsal.rows:
        encoded |= (rehearsed := _rehearsal(config, prepared, bars, root, run_dir, len(rows)))
        order = order.with_rehearsal(len(rehearsed), rehearsal)
    digest = rows_digest(encoded)
    goal = Trained.by(config, order.steps, digest)
    if config.run.resume and goal.is_finished(folder):
        return str(folder)
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    settings.save(config, run_dir / "config.yaml")
    if unfit:
        data.write_bad_rows(unfit, run_dir / "gold_rows.jsonl")
        console.print(
            f"[yellow]{len(unfit)} rows keep their gold answer[/], listed in {plain(run_dir / 'gold_rows.jsonl')}",
            soft_wrap=True,
        )
    storage = locate(config, run_dir)
    if not storage.has_any():
        make_key(run_dir)
    key = read_key(run_dir)
    table: list[ray.ObjectRef] = [ray.put(encoded)]
    del encoded
    questions = None
    if config.eval.every:
        chat = load_chat(prepared.folder, config.model)
        questions = make_validation_set(config, chat, prepared.context, prepared.validation)
        table.append(ray.put(questions))
    pipeline = start_pipeline(config, run_dir, order, prepared.folder, prepared.teacher)
    phase = f"Stage 2: {name or config.distill.method.value}"
    watch = Watch(pipeline, bars, phase, learner.timeout, here())
    try:
        bars.update(phase, 0, order.steps, "engines start")
        # Clears up after a dead run, so not before the actor's name says that none lives.
        start, step = check_resumable(storage, key, config, order, digest)
        if questions is not None:
            check_continues(config, run_dir, questions, step)
        for file, count in missing_steps(run_dir, step).items():
            console.print(
                f"[yellow]{plain(run_dir / file)}[/] lacks {plain(count)} of the {plain(step)} steps that are "
                "trained; put it back, or the report will lack them",
                highlight=False,
            )
        ray.get(pipeline.prepare.remote(table), timeout=120)
        task = LearnerTask(
            config=config,
            folder=prepared.folder,
            table=table,
            pipeline=pipeline,
            order=order,
            digest=digest,
            run_dir=str(run_dir),
            node=ray.get_runtime_context().get_node_id(),
            storage=storage,
            start=start,
            trained=goal,
        )
        with attach.reachable(run_dir), watch.going_on():
            train_workers(task, watch.controlled_by)
            ray.get(pipeline.finish.remote(), timeout=60)  # may have notices, which are still drawn
        if error := ray.get(pipeline.progress.remote(), timeout=60)["error"]:
            raise RaftError(f"{phase}: {error}; see {run_dir / 'logs'}")
        if not goal.is_finished(folder):
            raise RaftError(f"{phase}: no model of step {order.steps} in {folder}; see {run_dir / 'logs'}")
    except (ActorLost, ray.exceptions.RayError, TrainingFailedError) as error:
        cause = str(understood(error) or last_line(root_cause(error)))
        with suppress(ray.exceptions.RayError):  # A learner may have said why it ended the run.
            cause = ray.get(pipeline.stopped.remote(), timeout=30) or cause
        raise RaftError(f"{phase}: {'; '.join([*watch.trouble, cause])}; see {run_dir / 'logs'}") from error
    finally:
        # Rollout and teacher actors belong to the pipeline actor and end with it.
        ray.kill(pipeline)
        if config.uses_engines and address_of(config) is not None:
            # Nobody waits for room any more: the autoscaler need not either.
            Slots(config).ask(0)
    return str(folder)


def _rehearsal(
    config: Config, prepared: Prepared, bars: Bars, root: Path, run_dir: Path, first: int
) -> dict[int, EncodedRow]:
    """The rehearsal rows of a training, numbered from `first` on."""
    chat, tokens = load_chat(prepared.folder, config.model), config.distill.rehearsal.max_new_tokens
    prompts, told = rehearsal_prompts(config, chat, prepared.context, root, run_dir, bars.track("Stage 2: prompts"))
    if told:
        console.print(f"Rehearsal: {plain(told)}", highlight=False, soft_wrap=True)
    answers, scored = read_answers(run_dir) if config.keeps_answers else None, not config.uses_replay
    room = {"context": prepared.context, "max_new_tokens": tokens}
    return encode_prompts(prompts, chat, **room, first=first, answers=answers, scored=scored)


def _evaluated(
    config: Config, prepared: Prepared, folders: dict[str, str], bars: Bars, run_dir: Path
) -> dict[str, Any]:
    """`eval.json` of all models."""
    path = run_dir / "eval.json"
    if config.run.resume and path.exists():
        forget(run_dir)
        return read_evaluation(path)
    start = time.perf_counter()
    methods = evaluate_models(
        folders, config, prepared.test, lambda what, done, total: bars.update(f"Evaluate: {what}", done, total)
    )
    measure_against_base(methods, config.run.seed)
    for name, block in methods.items():
        made = read_trained(Path(folders[name]))
        if made is not None and made.weights_of is not None:
            block |= {"weights_of": made.weights_of, "why": made.why}
    result = {
        "main": list(folders)[-1],
        "data": {
            "train": shown(config.data.train) if prepared.train else None,
            "test": shown(config.data.test),
            "rows": len(prepared.train),
            "test_rows": len(prepared.test or []),
        },
        "seconds": round(time.perf_counter() - start, 1),
        "methods": methods,
    }
    write_whole(path, json.dumps(result, indent=1, ensure_ascii=False), errors="replace")
    forget(run_dir)
    return result
