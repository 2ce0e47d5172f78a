"""A judge of the evaluation: a language model that reads all models' answers, on an engine here or at an endpoint.

    take(answers of a model) ──> judge(batch) × n ──> opinions()      and again with the next model's
                                      │
                                      └── CacheActor: verdicts that are known are not asked for again

What follows from several judges' scores is `raft_ray.evaluate.judged`'s.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from actors.evaluate.process import Actor
from actors.refine.engines import RefineEngine, engine_options, identity, plan_pool
from actors.runtime.cluster import actor_options, log_to_file
from raft_ray.config import Config, RefineModelConfig
from raft_ray.evaluate.judged import Answered, JudgePrompts, JudgeResult, Metered
from raft_ray.refine.cache import CachedGenerate, Store
from raft_ray.refine.endpoint import Endpoint
from raft_ray.refine.judges import LlmJudge, Verdict
from raft_ray.refine.roles import is_local

CHUNK_SIZE = 64
"""Answers per call at most: enough to fill an engine's batch, few enough to show progress."""
LONGEST_PAUSE = 120.0
"""Seconds that an endpoint may ask to be left alone before a further try."""


def judge_options(config: Config, name: str) -> dict[str, Any]:
    """Resources and process environment of a judge's actor: an engine's, or next to nothing for an endpoint."""
    if is_local(config.refine, name):
        return engine_options(plan_pool(config, name), overlapped=False)
    return actor_options(role="judge", num_cpus=1, num_gpus=0, threads=1)


def judge_timeout(config: Config, name: str) -> float:
    """Longest wait, in seconds, for the judge's start or one batch."""
    if is_local(config.refine, name):
        return config.rollout.timeout
    model = config.refine.models[name]
    rounds = math.ceil(CHUNK_SIZE / model.concurrency)
    return config.rollout.timeout + rounds * (model.retries + 1) * (model.timeout + LONGEST_PAUSE)


class JudgeActor(Actor):
    """One judge, `self` or a name in `refine.models`; `store` keeps what it says."""

    def __init__(self, name: str, config: Config, prompts: JudgePrompts, store: Store) -> None:
        self.name, self.config, self.prompts, self.store = name, config, prompts, store

    def start(self) -> None:
        """Start the engine, or check the endpoint's settings where its key must be. Raises `ConfigError`."""
        run_dir = self.config.run.dir
        log_to_file(Path(run_dir), f"judge-{self.name}")
        self.identity = identity(self.config, self.name)
        self.model: Any
        if is_local(self.config.refine, self.name):
            self.model = RefineEngine(plan_pool(self.config, self.name), f"judge-{self.name}", run_dir).generate
        else:
            self.model = Endpoint(self.name, self.config.refine.models[self.name])

    def take(self, whose: str, answers: Answered) -> list[int]:
        """Go on with the answers of the model `whose`. Returns how many each batch has. Verdicts are kept by model, so
        that a batch is known or asked for as a whole: an endpoint that fails now and then would seem to fail altogether
        where little of a batch is left to ask."""
        price = self.config.refine.models.get(self.name, RefineModelConfig())
        self.meters: dict[str, Metered] = {}
        self.judges: dict[str, LlmJudge] = {}
        self.verdicts: dict[str, list[Verdict | None]] = {}
        self.batches = []
        for kind, cases in answers.items():
            self.meters[kind] = Metered(self.identity, self.model, price)
            self.judges[kind] = LlmJudge(
                self.name,
                CachedGenerate(self.meters[kind], self.store, f"judge {self.name}", scope=whose),
                self.prompts[kind],
                max_new_tokens=self.config.eval.judge_max_new_tokens,
                seed=self.config.run.seed,
            )
            self.verdicts[kind] = []
            # Equal parts, for the same reason: no last batch of one.
            size = math.ceil(len(cases) / math.ceil(len(cases) / CHUNK_SIZE)) if cases else 1
            self.batches += [(kind, cases[start : start + size]) for start in range(0, len(cases), size)]
        return [len(cases) for _, cases in self.batches]

    def judge(self, batch: int) -> None:
        """Judge one batch of the answers; batches are in order. Raises what the model raises: `RaftError` where an
        endpoint answered nothing, `ConfigError` where it refuses."""
        kind, cases = self.batches[batch]
        self.verdicts[kind] += self.judges[kind].verdicts(cases)

    def opinions(self) -> dict[str, JudgeResult]:
        """What this judge says of the model's answers, by kind (`domain`, `open`)."""
        return {
            kind: JudgeResult(
                [one.score if one else None for one in verdicts],
                [one.reason if one else "" for one in verdicts],
                dict(self.judges[kind].failures),
                self.meters[kind].usage(),
            )
            for kind, verdicts in self.verdicts.items()
        }
