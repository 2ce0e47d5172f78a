"""Evaluation on the cluster: every model answers the same prompts, and the answers are measured.

```
driver                EvalActor (one vLLM engine, weights swapped per model)      ScoreActor (transformers)
  weight distances ─> (Ray tasks, first: they tell a folder that does not fit)
  per model: load ──> chunks of prompts ──> scores, texts
                      base only: general answers' token ids ───────ref─────────> base's hidden states, once
                              (a known base: from its file)
                      per model: answers to judge ──ref──┐                        per tuned model: KL
                      ends                               │                        per model: MMLU, domain choices
                                                         └──> JudgeActor, one judge after the other: verdicts
                                                                  └── CacheActor: those that it gave before
```

An actor's process has ended before the next one starts (EvalActor, ScoreActor, each JudgeActor), so no two models are
in memory together. Nothing heavy runs in the driver; token ids and texts go from actor to actor by reference.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.evaluate.eval_actor import EvalActor, Questions, questions, subset
from actors.evaluate.judge_actor import JudgeActor, judge_options, judge_timeout
from actors.evaluate.score_actor import ScoreActor
from actors.refine.cache import RemoteStore, cache_actor
from actors.runtime.cluster import actor_options
from actors.runtime.limits import Limits
from actors.runtime.remote import FETCH, get, paced
from raft_ray import models as sources
from raft_ray.config import Config
from raft_ray.config.references import shown
from raft_ray.data import Row
from raft_ray.errors import ConfigError
from raft_ray.evaluate import domain
from raft_ray.evaluate.judged import (
    JudgePrompts,
    JudgeResult,
    domain_part,
    load_judge_prompts,
    open_part,
    open_verdicts,
)
from raft_ray.files import write_whole
from raft_ray.interrupts import interrupts
from raft_ray.json_files import read_json

Progress = Callable[[str, int, int], None]


def evaluate(
    models: dict[str, str],
    config: Config,
    test_rows: list[Row] | None,
    progress: Progress | None = None,
    base_answers: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """The `methods` part of `eval.json` (see `docs/design.md`): a block of measurements for each model.

    Args:
        models: folder (or hub name) by method; `base` is what drift and weight distance are measured against, and
            without it they are none.
        test_rows: the domain's test questions; none leaves domain accuracy out.
        progress: called with a stage, what of it is done, and its total.
        base_answers: file of the token ids of the base's answers to general prompts. Where it is not there, it is
            written; where it is, an evaluation with the same questions has measured the base, which then is asked
            nothing and has no block.

    Needs a started Ray. Raises `RaftError` naming actor and node when an actor dies or does not answer in time,
    `ModelError` when a model does not fit its base, `ConfigError` when there is nothing to measure.
    """
    asked = questions(config, test_rows)
    if not models or not (asked.generated or asked.mmlu):
        raise ConfigError("nothing to evaluate: no model, or eval.*_rows and data.test leave no question")
    report = progress or (lambda stage, done, total: None)
    models = {name: models[name] for name in sorted(models, key=lambda name: name != "base")}
    known = read_json(base_answers) if base_answers is not None and base_answers.exists() else None
    answering = {name: folder for name, folder in models.items() if known is None or name != "base"}
    measured: dict[str, dict[str, Any]] = {
        name: {
            "model": shown(folder),
            "domain": None,
            "ifeval": None,
            "length": None,
            "seconds": {},
            "too_long": {},
            "open": None,
        }
        | {"answers": [], "general_answers": [], "open_answers": []}
        for name, folder in answering.items()
    }
    _weight_distances(models, config, measured, report)
    pairs, answered = _answer(answering, config, asked, measured, report) if asked.generated else (None, {})
    if known is not None:
        pairs = ray.put(known) if known else None
    elif base_answers is not None:
        write_whole(base_answers, json.dumps(ray.get(pairs, timeout=FETCH) if pairs is not None else []))
    _scored(models, config, asked, pairs, measured, report)
    if config.eval.judges and answered:
        _judged(answered, config, asked, measured, report)
    for block in measured.values():
        _summarise(block, config)
    return measured


def _weight_distances(
    models: dict[str, str], config: Config, measured: dict[str, dict[str, Any]], report: Progress
) -> None:
    options = actor_options(
        role="evaluate", num_cpus=config.teacher.num_cpus, num_gpus=0, threads=config.teacher.threads
    )
    for done, name in enumerate(measured):
        measured[name]["weight_distance"] = None
        if "base" in models:
            report("weight distance", done, len(measured))
            arguments = (models["base"], models[name], config.model.allow_pickle)
            ref = ray.remote(_distance).options(**options).remote(*arguments)
            measured[name]["weight_distance"] = get(
                ref, config.teacher.timeout, f"weight distance of {name} (a Ray task)"
            )


def _distance(base: str, tuned: str, allow_pickle: bool) -> dict[str, Any] | None:
    """The weight distance; none for pickled weights, which are allowed but cannot be read tensor by tensor."""
    from raft_ray.evaluate.distance import weight_distance

    folders = []
    for name in (base, tuned):
        folder = weights_folder(name)
        if allow_pickle and not any(Path(folder).glob("*.safetensors")):
            return None
        folders.append(folder)
    return weight_distance(*folders)


def weights_folder(name: str) -> str:
    """The local folder with a model's safetensors weights, fetched from the hub if it lies there."""
    folder = sources.resolve(name)
    if os.path.isdir(folder):
        return folder
    from huggingface_hub import snapshot_download

    return str(snapshot_download(folder, allow_patterns=["*.safetensors", "*.safetensors.index.json", "config.json"]))


def _answer(
    models: dict[str, str], config: Config, asked: Questions, measured: dict[str, dict[str, Any]], report: Progress
) -> tuple[ray.ObjectRef | None, dict[str, ray.ObjectRef]]:
    """Let every model answer, and fill in what its answers tell.

    Returns the base's general answers and, by model, the answers that judges read (none without judges).
    """
    rollout = config.rollout
    longest = max(
        config.eval.ifeval_max_new_tokens,
        config.eval.general_max_new_tokens,
        config.eval.domain_max_new_tokens,
        config.eval.open_max_new_tokens if asked.open else 0,
    )
    timeout = rollout.timeout * max(1.0, longest / rollout.max_new_tokens)
    options = answering_options(config)
    actor: Any = ray.remote(EvalActor).options(**options).remote(next(iter(models.values())), config, asked)
    pairs = None
    answered: dict[str, ray.ObjectRef] = {}
    try:
        who = _where(actor, "EvalActor", rollout.timeout, options)
        report("engine", 0, 1)
        chunks = get(actor.start.remote(), rollout.timeout, who)
        report("engine", 1, 1)
        for name, folder in models.items():
            start = time.perf_counter()
            get(actor.load.remote(folder), rollout.timeout, who)
            loaded = time.perf_counter()
            for chunk in range(len(chunks)):
                report(f"answers of {name}", sum(chunks[:chunk]), sum(chunks))
                get(actor.answer.remote(chunk), timeout, who)
            report(f"answers of {name}", sum(chunks), sum(chunks))
            seconds = {"load": loaded - start, "answers": time.perf_counter() - loaded}
            if name == "base" and asked.general:
                pairs = actor.general_pairs.remote()
                ray.wait([pairs], timeout=rollout.timeout, fetch_local=False)
            if config.eval.judges:
                answered[name] = actor.answered.remote()
                ray.wait([answered[name]], timeout=rollout.timeout, fetch_local=False)
            result = get(actor.measure.remote(), rollout.timeout, who)
            seconds.update(result.pop("seconds"))
            measured[name].update(result, seconds=seconds)
        return pairs, answered
    finally:
        _end(actor, rollout.timeout)


def answering_options(config: Config) -> dict[str, Any]:
    """Resources and process environment of the `EvalActor`: those of a rollout actor."""
    rollout = config.rollout
    # `num_gpus` is the engine's whole number of GPUs, with tensor parallelism too.
    return actor_options(role="evaluate", num_cpus=rollout.num_cpus, num_gpus=rollout.num_gpus, threads=rollout.threads)


def _scored(
    models: dict[str, str],
    config: Config,
    asked: Questions,
    pairs: ray.ObjectRef | None,
    measured: dict[str, dict[str, Any]],
    report: Progress,
) -> None:
    """Fill in what every model's probabilities tell: drift on the base's answers `pairs`, and its choices."""
    for block in measured.values():
        block.update(drift=None, mmlu=None)
    if pairs is None and not asked.choices and asked.mmlu is None:
        return
    teacher = config.teacher
    options = actor_options(
        role="evaluate", num_cpus=teacher.num_cpus, num_gpus=teacher.num_gpus, threads=teacher.threads
    )
    actor: Any = ray.remote(ScoreActor).options(**options).remote(next(iter(models.values())), config, asked)
    try:
        who = _where(actor, "ScoreActor", teacher.timeout, options)
        chunks, limits = get(actor.start.remote(), teacher.timeout, who), Limits()
        # A base that is known is here for the others' drift alone.
        for done, name in enumerate(models if pairs is not None else measured):
            start = time.perf_counter()
            get(actor.load.remote(models[name]), teacher.timeout, who)
            if pairs is not None:
                report("drift", done, len(models))
                call = actor.refer.remote(pairs) if name == "base" else actor.drift.remote()
                drift = get(call, teacher.timeout, who)
            if name not in measured:
                continue
            block = measured[name]
            if pairs is not None:
                block["drift"] = drift
                block["seconds"]["drift"] = time.perf_counter() - start
                start = time.perf_counter()
            for chunk in range(len(chunks)):
                report(f"choices of {name}", sum(chunks[:chunk]), sum(chunks))
                paced(limits, f"choose {chunk}", actor.choose.remote(chunk), teacher.timeout, who)
            if chunks:
                report(f"choices of {name}", sum(chunks), sum(chunks))
                block["seconds"]["choices"] = time.perf_counter() - start
            result = get(actor.measure.remote(), teacher.timeout, who)
            block["mmlu"] = result["mmlu"]
            if block["domain"] is not None:
                block["domain"].update(result["domain"])
        if pairs is not None:
            report("drift", len(models), len(models))
    finally:
        _end(actor, teacher.timeout)


def _judged(
    answered: dict[str, ray.ObjectRef],
    config: Config,
    asked: Questions,
    measured: dict[str, dict[str, Any]],
    report: Progress,
) -> None:
    """Fill in what the judges say of every model's answers: `open`, and a verdict on each of the domain's questions."""
    prompts = load_judge_prompts(config.eval)
    with cache_actor(Path(config.run.dir).absolute(), "judge") as cache:
        said = {
            judge: _opinions((judge, config, prompts, RemoteStore(cache)), answered, measured, report)
            for judge in config.eval.judges
        }
    for name in answered:
        block = measured[name]
        on_domain, on_open = (
            {judge: found[name][kind] for judge, found in said.items()} for kind in ("domain", "open")
        )
        if asked.domain:
            block["domain"]["judged"], block["judged"] = domain_part(
                on_domain, config.eval.judge_prompt, prompts.domain
            )
        if asked.open:
            block["open"] = open_part(asked.open, on_open, config.eval.open_prompt, prompts.open)
            block["open_answers"] = _judged_samples(block, asked, on_open, config)


def _judged_samples(
    block: dict[str, Any], asked: Questions, opinions: dict[str, JudgeResult], config: Config
) -> list[dict[str, Any]]:
    """The answers to open questions that are shown, with what the judges say of them."""
    said = list(zip(block["open"]["scores"], open_verdicts(asked.open, opinions), strict=True))
    shown = subset(said, config.eval.samples, config.run.seed)
    return [
        {
            "score": score,
            "turns": [turn | {"judges": judges} for turn, judges in zip(sample["turns"], verdicts, strict=True)],
        }
        for sample, (score, verdicts) in zip(block["open_answers"], shown, strict=True)
    ]


def _opinions(
    arguments: tuple[str, Config, JudgePrompts, RemoteStore],
    answered: dict[str, ray.ObjectRef],
    measured: dict[str, dict[str, Any]],
    report: Progress,
) -> dict[str, dict[str, JudgeResult]]:
    """What one judge says, by model and kind of answer; `arguments` are those of its actor."""
    judge, config, *_ = arguments
    options, timeout = judge_options(config, judge), judge_timeout(config, judge)
    actor: Any = ray.remote(JudgeActor).options(**options).remote(*arguments)
    found = {}
    try:
        who = _where(actor, f"JudgeActor {judge}", timeout, options)
        report(f"judge {judge}", 0, 1)
        get(actor.start.remote(), timeout, who)
        report(f"judge {judge}", 1, 1)
        for name, answers in answered.items():
            start = time.perf_counter()
            chunks = get(actor.take.remote(name, answers), timeout, who)
            for chunk in range(len(chunks)):
                report(f"{judge} on answers of {name}", sum(chunks[:chunk]), sum(chunks))
                get(actor.judge.remote(chunk), timeout, who)
            report(f"{judge} on answers of {name}", sum(chunks), sum(chunks))
            found[name] = get(actor.opinions.remote(), timeout, who)
            measured[name]["seconds"][f"judge {judge}"] = time.perf_counter() - start
        return found
    finally:
        _end(actor, timeout)


def _summarise(block: dict[str, Any], config: Config) -> None:
    """Turn the verdicts on the domain's questions into accuracies, and mark the answers shown by the measure chosen."""
    if block["domain"] is None:
        return
    judged = {"judged": block.pop("judged")} if "judged" in block["domain"] else {}
    block["domain"] = domain.summary(block["domain"], config.eval.domain_metric) | judged
    shown = subset(block["domain"]["correct"], config.eval.samples, config.run.seed)
    for answer, correct in zip(block["answers"], shown, strict=True):
        answer["correct"] = correct


def _where(actor: Any, name: str, timeout: float, options: dict[str, Any]) -> str:
    """Actor and node once the process is there."""
    wants = f"{options['num_cpus']:g} CPUs and {options['num_gpus']:g} GPUs"
    who: str = get(actor.where.remote(), timeout, f"{name} (not placed yet: it waits for {wants} on one node)")
    return who


def _end(actor: Any, timeout: float) -> None:
    """Wait until the actor's process has ended, so that its memory is free; on Ctrl-C it is killed at once."""
    try:
        if interrupts.received is not None:
            ray.kill(actor, no_restart=True)
            return
        ray.get(actor.stop.remote(), timeout=min(timeout, 30.0))
    except ray.exceptions.RayError:
        # What an exit looks like from outside; whatever is left of a hanging process is killed.
        ray.kill(actor, no_restart=True)
