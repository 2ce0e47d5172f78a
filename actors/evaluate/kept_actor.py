"""The actor that keeps models' answers in the run folder while an evaluation goes on (`raft_ray.evaluate.kept`).

EvalActor, on any node ── get, put ──> KeptAnswers, on the driver's node ──> answers/MODEL/KIND.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from actors.runtime.cluster import actor_options, on_node
from actors.runtime.remote import FETCH, again
from raft_ray.evaluate.kept import Calls, KeptAnswers, Place, Written


class RemoteAnswers:
    """The actor as an `AnswerStore`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def get(self, model: str) -> Calls:
        calls: Calls = self._call("get", model)
        return calls

    def put(self, model: str, call: str, answers: Mapping[Place, Written]) -> None:
        self._call("put", model, call, answers)

    def _call(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._actor, method)
        return again(lambda: call.remote(*arguments), self._actor, FETCH, "the actor that keeps answers")


@contextmanager
def kept_answers(run_dir: str) -> Iterator[RemoteAnswers]:
    """What is kept in the run folder, which is on this node; the actor ends with the block."""
    options = actor_options(role="evaluate", num_cpus=0, num_gpus=0, threads=1)
    actor = ray.remote(KeptAnswers).options(max_restarts=-1, max_task_retries=-1, **options, **on_node())
    handle: Any = actor.remote(run_dir)
    try:
        yield RemoteAnswers(handle)
    finally:
        ray.kill(handle)
