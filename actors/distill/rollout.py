"""The rollout actor: a vLLM engine that samples the student's trajectories with a known weight version.

Its only state is that version. It serves nothing before it has loaded one, also after a restart, and the
pipeline decides when it takes up a new one: between two batches, or with `sync.in_flight` between two tokens of one.
"""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path

import numpy as np
import ray

from actors.distill.validation import Part
from actors.engine.vllm_engine import Engine
from actors.engine.weight_sync import WeightReceiver
from actors.runtime.cluster import here, log_to_file
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.distill.trajectory import RolloutBatch, SampleInfo, Trajectory, with_tokens
from raft_ray.errors import RaftError
from raft_ray.evaluate.answers import Answer
from raft_ray.models.chat import Chat
from raft_ray.models.prompts import EncodedRow


class RolloutActor(WeightReceiver):
    """Samples trajectories from the student; its weights come by the methods of `WeightReceiver`, and replace those of
    the original model in `folder` before use. `table` is as of `TeacherActor`."""

    def __init__(self, config: Config, folder: str, table: list[ray.ObjectRef], name: str, run_dir: str) -> None:
        log_to_file(Path(run_dir), name)
        self._config, self._folder = config, folder
        self._table: dict[int, EncodedRow] = ray.get(table[0], timeout=config.rollout.timeout)
        self._one = threading.Lock()
        """A rollout batch that nobody waits for any more, after learners began anew, ends before the next."""
        context = models.model_context(folder, config.model)
        engine = Engine(
            folder,
            config.model,
            config.rollout,
            context=context,
            weight_sync=config.sync.backend,
            adapter=config.learner.lora if config.swaps_adapters else None,
        )
        super().__init__(name, engine, config.sync)

    def ready(self) -> str:
        """The actor's node, once its engine runs and has nothing left to do."""
        with self._one:
            return here()

    @cached_property
    def _chat(self) -> Chat:
        """Of the model; for runs with evaluations, since others need no tokenizer here."""
        return models.load_chat(self._folder, self._config.model)

    def answer(self, part: Part) -> list[Answer]:
        """Greedy answers to a part of an evaluation, and the verdicts on them. Raises `RaftError` when the actor holds
        another version than the part's."""
        with self._one:
            if (version := self.held()) != part.step:
                raise RaftError(f"{self.name} holds version {version}; version {part.step} is to be evaluated")
            announce(self.name, "evaluating", version)
            # Neither evaluation nor rollouts may find prefixes that the other has left: reading a prompt whole or in
            # part is not the same to the last bit.
            self._engine.forget_prefixes()
            completions = self._engine.generate(
                [each.prompt for each in part.questions], max_new_tokens=part.limits, temperature=0.0
            )
            self._engine.forget_prefixes()
        texts = [self._chat.text(each.token_ids) for each in completions]
        return [
            Answer(text, each.token_ids, each.truncated, question.correct(text))
            for question, each, text in zip(part.questions, completions, texts, strict=True)
        ]

    def generate(self, batch: RolloutBatch) -> tuple[list[SampleInfo], list[Trajectory]]:
        """Trajectories for a rollout batch's rows, as two return values: what the pipeline is to know of them, and the
        trajectories. Raises `RaftError` when the actor holds no known version."""
        updates: list[tuple[int, list[int]]] = []
        """Each version that the rollout batch is written with, and the tokens that its rows had before."""

        def note_version(written: list[int]) -> None:
            version = self.held()
            if not updates:
                announce(self.name, "generating", batch.step, rows=[sample_id.row for sample_id in batch.sample_ids])
            if not updates or updates[-1][0] != version:
                updates.append((version, written))

        with self._one:
            self.held()  # refused before vLLM has requests
            rollout, in_flight = self._config.rollout, self._config.sync.in_flight
            rows = [self._table[sample_id.row] for sample_id in batch.sample_ids]
            rehearsal = self._config.distill.rehearsal.max_new_tokens
            if not in_flight:
                note_version([0] * len(batch.sample_ids))
            completions = self._engine.generate(
                [row.prompt for row in rows],
                max_new_tokens=[rehearsal if row.rehearses else rollout.max_new_tokens for row in rows],
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                seed=batch.seed(self._config.run.seed),
                before_step=note_version if in_flight else None,
            )
        trajectories = []
        for index, (sample_id, completion) in enumerate(zip(batch.sample_ids, completions, strict=True)):
            spans = [(version, written[index]) for version, written in updates]
            spans = with_tokens(spans, len(completion.token_ids))
            trajectories.append(
                Trajectory(
                    sample_id=sample_id,
                    version=spans[0][0],
                    token_ids=np.asarray(completion.token_ids, dtype=np.int32),
                    truncated=completion.truncated,
                    rollout=self.name,
                    versions=tuple(spans) if len(spans) > 1 else (),
                )
            )
        return [each.info for each in trajectories], trajectories
