"""The actor that keeps models' answers in the run folder while an evaluation goes on (`raft_ray.evaluate.kept`).

EvalActor, on any node ── get, put ──> KeptAnswers, on the driver's node ──> answers/MODEL/KIND.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from actors.runtime.cluster import keeper
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
        return again(self._actor, method, *arguments, limit=FETCH, who="the actor that keeps answers")


@contextmanager
def kept_answers(run_dir: str) -> Iterator[RemoteAnswers]:
    """What is kept in the run folder, which is on this node; the actor ends with the block."""
    with keeper(KeptAnswers, "evaluate", run_dir) as handle:
        yield RemoteAnswers(handle)
