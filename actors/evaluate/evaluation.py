"""Evaluation on the cluster: every model answers the same prompts, and the answers are measured.

```
driver                EvalActor (one vLLM engine, weights swapped per model)      ScoreActor (transformers)
  weight distances ─> (Ray tasks, first: they tell a folder that does not fit)
  per model: load ──> batches of prompts ──> scores, texts
                      each batch <──> KeptAnswers, on the driver's node: what an interrupted evaluation has written
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
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.evaluate.eval_actor import EvalActor, Questions, questions
from actors.evaluate.judge_actor import JudgeActor, judge_options, judge_timeout
from actors.evaluate.kept_actor import kept_answers
from actors.evaluate.process import process
from actors.evaluate.score_actor import ScoreActor
from actors.refine.cache import RemoteStore, cache_actor
from actors.runtime.cluster import actor_options
from actors.runtime.limits import Limits
from actors.runtime.remote import FETCH, get
from raft_ray import models as sources
from raft_ray.config import Config, ModelConfig
from raft_ray.config.references import shown
from raft_ray.data import Row
from raft_ray.errors import ConfigError
from raft_ray.evaluate import domain
from raft_ray.evaluate.drift import weight_distance
from raft_ray.evaluate.judged import JudgeResult, domain_part, load_judge_prompts, open_part, open_verdicts
from raft_ray.evaluate.subset import subset
from raft_ray.files import write_whole
from raft_ray.json_files import read_json

Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)
_UNUSED = "%d answers in answers/%s are of other weights, questions or settings, and were generated anew"


def evaluate_models(
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

    What models write is kept in the run folder until the caller calls `raft_ray.evaluate.kept.forget`: an evaluation
    that was interrupted takes it as it is.

    Needs a started Ray. Raises `RaftError` naming actor and node when an actor dies or does not answer in time,
    `ModelError` when a model does not fit its base, `ConfigError` when there is nothing to measure.
    """
    asked = questions(config, test_rows)
    if not models or not (asked.generated or asked.mmlu):
        raise ConfigError("nothing to evaluate: no model, or eval.*_rows and data.test leave no question")
    models = {name: models[name] for name in sorted(models, key=lambda name: name != "base")}
    known = read_json(base_answers) if base_answers is not None and base_answers.exists() else None
    measured: dict[str, dict[str, Any]] = {
        name: {
            "model": shown(folder),
            **dict.fromkeys(("domain", "ifeval", "mmlu", "open", "length", "drift", "weight_distance")),
            **{key: [] for key in ("answers", "general_answers", "open_answers")},
            **{key: {} for key in ("seconds", "too_long")},
        }
        for name, folder in models.items()
        if known is None or name != "base"
    }
    evaluation = Evaluation(models, config, asked, measured, progress or (lambda stage, done, total: None))
    evaluation.weigh()
    pairs, answered = evaluation.answer() if asked.generated else (None, {})
    if known is not None:
        pairs = ray.put(known) if known else None
    elif base_answers is not None:
        write_whole(base_answers, json.dumps(ray.get(pairs, timeout=FETCH) if pairs is not None else []))
    evaluation.score(pairs)
    if config.eval.judges and answered:
        evaluation.judge(answered)
    for block in measured.values():
        _summarise(block, config)
    return measured


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: each step fills in its part of every model's block."""

    models: dict[str, str]
    config: Config
    asked: Questions
    measured: dict[str, dict[str, Any]]
    """Blocks of `models`, but for a base that was measured before."""
    report: Progress

    def weigh(self) -> None:
        """Weight distances from the base."""
        if "base" not in self.models:
            return
        teacher = self.config.teacher
        options = actor_options(role="evaluate", num_cpus=teacher.num_cpus, num_gpus=0, threads=teacher.threads)
        task = ray.remote(_distance).options(**options)
        for done, (name, block) in enumerate(self.measured.items()):
            self.report("weight distance", done, len(self.measured))
            ref = task.remote(self.models["base"], self.models[name], self.config.model)
            block["weight_distance"] = get(ref, teacher.timeout, f"weight distance of {name} (a Ray task)")

    def answer(self) -> tuple[ray.ObjectRef | None, dict[str, ray.ObjectRef]]:
        """Let every model answer, and fill in what its answers tell. Returns the base's general answers and, by model,
        the answers that judges read (none without judges)."""
        rollout = self.config.rollout
        longest = max(turn.limit for turn in self.asked.turns(self.config.eval))
        timeout = rollout.timeout * max(1.0, longest / rollout.max_new_tokens)
        folder, options = self.models[next(iter(self.measured))], answering_options(self.config)
        pairs, answered = None, {}
        with (
            kept_answers(str(Path(self.config.run.dir).absolute())) as kept,
            process("EvalActor", EvalActor, (folder, self.config, self.asked, kept), options, rollout.timeout) as actor,
        ):
            self.report("engine", 0, 1)
            sizes = actor.call("start")
            self.report("engine", 1, 1)
            for name, block in self.measured.items():
                with _timed(block, "load"):
                    actor.call("load", name, self.models[name])
                with _timed(block, "answers"):
                    actor.work("answer", sizes, partial(self.report, f"answers of {name}"), timeout)
                if unused := actor.call("unused"):
                    _log.warning(_UNUSED, unused, name)
                if name == "base" and self.asked.general:
                    pairs = actor.kept("general_pairs")
                if self.config.eval.judges:
                    answered[name] = actor.kept("answered")
                result = actor.call("measure")
                block["seconds"] |= result.pop("seconds")
                block |= result
        return pairs, answered

    def score(self, pairs: ray.ObjectRef | None) -> None:
        """What every model's probabilities tell: drift on the base's answers `pairs`, and its choices."""
        if pairs is None and not self.asked.choices and self.asked.mmlu is None:
            return
        teacher, models = self.config.teacher, self.models
        options = actor_options(
            role="evaluate", num_cpus=teacher.num_cpus, num_gpus=teacher.num_gpus, threads=teacher.threads
        )
        arguments = (next(iter(models.values())), self.config, self.asked)
        with process("ScoreActor", ScoreActor, arguments, options, teacher.timeout) as actor:
            sizes, limits = actor.call("start"), Limits()
            # A base that is known is here for the others' drift alone.
            for done, name in enumerate(models if pairs is not None else self.measured):
                block = self.measured.get(name, {"seconds": {}})
                with _timed(block, "choices" if pairs is None else "drift"):
                    actor.call("load", models[name])
                    if pairs is not None:
                        self.report("drift", done, len(models))
                        block["drift"] = actor.call("refer", pairs) if name == "base" else actor.call("drift")
                if name not in self.measured:
                    continue
                if sizes:
                    with _timed(block, "choices"):
                        actor.work("choose", sizes, partial(self.report, f"choices of {name}"), limits=limits)
                result = actor.call("measure")
                block["mmlu"] = result["mmlu"]
                if block["domain"] is not None:
                    block["domain"] |= result["domain"]
            if pairs is not None:
                self.report("drift", len(models), len(models))

    def judge(self, answered: dict[str, ray.ObjectRef]) -> None:
        """What the judges say of every model's answers: `open`, and a verdict on each of the domain's questions."""
        prompts, asked = load_judge_prompts(self.config.eval), self.config.eval
        with cache_actor(Path(self.config.run.dir).absolute(), "judge") as cache:
            said = {
                judge: self.opinions(judge, (judge, self.config, prompts, RemoteStore(cache)), answered)
                for judge in asked.judges
            }
        for name in answered:
            block = self.measured[name]
            on_domain, on_open = (
                {judge: found[name][kind] for judge, found in said.items()} for kind in ("domain", "open")
            )
            if self.asked.domain:
                block["domain"]["judged"], block["judged"] = domain_part(
                    on_domain, asked.judge_prompt, prompts["domain"]
                )
            if self.asked.open:
                block["open"] = open_part(self.asked.open, on_open, asked.open_prompt, prompts["open"])
                block["open_answers"] = _judged_samples(block, self.asked, on_open, self.config)

    def opinions(
        self, judge: str, arguments: tuple[Any, ...], answered: dict[str, ray.ObjectRef]
    ) -> dict[str, dict[str, JudgeResult]]:
        """What one judge says, by model and kind of answer; `arguments` are those of its actor."""
        options, timeout = judge_options(self.config, judge), judge_timeout(self.config, judge)
        found = {}
        with process(f"JudgeActor {judge}", JudgeActor, arguments, options, timeout) as actor:
            self.report(f"judge {judge}", 0, 1)
            actor.call("start")
            self.report(f"judge {judge}", 1, 1)
            for name, answers in answered.items():
                with _timed(self.measured[name], f"judge {judge}"):
                    sizes = actor.call("take", name, answers)
                    actor.work("judge", sizes, partial(self.report, f"{judge} on answers of {name}"))
                    found[name] = actor.call("opinions")
        return found


def weights_folder(name: str, config: ModelConfig) -> str:
    """The local folder with a model's safetensors weights, fetched from the hub if it lies there, merged with its
    adapter if it has one."""
    folder = sources.resolve(name, config)
    if os.path.isdir(folder):
        return folder
    from huggingface_hub import snapshot_download

    return str(snapshot_download(folder, allow_patterns=["*.safetensors", "*.safetensors.index.json", "config.json"]))


def answering_options(config: Config) -> dict[str, Any]:
    """Resources and process environment of the `EvalActor`: those of a rollout actor."""
    rollout = config.rollout
    # `num_gpus` is the engine's whole number of GPUs, with tensor parallelism too.
    return actor_options(role="evaluate", num_cpus=rollout.num_cpus, num_gpus=rollout.num_gpus, threads=rollout.threads)


def _distance(base: str, tuned: str, config: ModelConfig) -> dict[str, Any] | None:
    """The weight distance; none for pickled weights, which are allowed but cannot be read tensor by tensor."""
    folders = [weights_folder(name, config) for name in (base, tuned)]
    if config.allow_pickle and not all(any(Path(folder).glob("*.safetensors")) for folder in folders):
        return None
    return weight_distance(*folders)


def _judged_samples(
    block: dict[str, Any], asked: Questions, opinions: dict[str, JudgeResult], config: Config
) -> list[dict[str, Any]]:
    """The answers to open questions that are shown, with what the judges say of them."""
    said = list(zip(block["open"]["scores"], open_verdicts(asked.open, opinions), strict=True))
    return [
        {
            "score": score,
            "turns": [turn | {"judges": judges} for turn, judges in zip(sample["turns"], verdicts, strict=True)],
        }
        for sample, (score, verdicts) in zip(
            block["open_answers"], subset(said, config.eval.samples, config.run.seed), strict=True
        )
    ]


def _summarise(block: dict[str, Any], config: Config) -> None:
    """Turn the verdicts on the domain's questions into accuracies, and mark the answers shown by the measure chosen."""
    if block["domain"] is None:
        return
    judged = {"judged": block.pop("judged")} if "judged" in block["domain"] else {}
    block["domain"] = domain.summary(block["domain"], config.eval.domain_metric) | judged
    chosen = subset(block["domain"]["correct"], config.eval.samples, config.run.seed)
    for answer, correct in zip(block["answers"], chosen, strict=True):
        answer["correct"] = correct


@contextmanager
def _timed(block: dict[str, Any], what: str) -> Iterator[None]:
    """Add the seconds that the block takes to what a model has taken for `what`."""
    start = time.perf_counter()
    yield
    block["seconds"][what] = block["seconds"].get(what, 0.0) + time.perf_counter() - start
