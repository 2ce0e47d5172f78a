"""What is left of an error after Ray, Ray Train and Ray Data have wrapped it; no Ray is started."""

from __future__ import annotations

import re
import socket
from types import SimpleNamespace

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.data.exceptions import UserCodeException
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from actors.runtime import cluster, remote
from actors.runtime.data_context import quiet_data
from actors.runtime.remote import ActorLost, DataLost, again, failure, get, last_line, root_cause, understood
from raft_ray.errors import ConfigError, DataError, RaftError

REFUSED = DataError("a.jsonl: line 3: empty")


def wrapped(error: Exception, traceback: str = "Traceback ...") -> RayTaskError:
    """An error of a call, as `ray.get` raises it."""
    return RayTaskError("call", traceback, error).as_instanceof_cause()


def start_that_raised(line: str) -> ActorDiedError:
    """Ray keeps the text alone."""
    return ActorDiedError(RayTaskError("RolloutActor.__init__", f"Traceback ...\n{line}", DataError("unknown")))


def lost() -> ObjectLostError:
    return ObjectLostError("00" * 28, owner_address=None, call_site="")


@pytest.mark.parametrize(
    "error",
    [
        REFUSED,
        wrapped(REFUSED),
        wrapped(wrapped(REFUSED)),
        WorkerGroupError("rank 1 failed", {1: wrapped(REFUSED)}),
        ControllerError(wrapped(REFUSED)),
    ],
    ids=["plain", "one call", "a call in a call", "a rank", "the controller"],
)
def test_the_root_cause_is_what_was_raised_first(error: Exception) -> None:
    assert root_cause(error) is REFUSED


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RaftError("one line"), "one line"),
        (RaftError("Traceback ...\n  File ...\nValueError: no such row \n"), "ValueError: no such row"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_last_line_of_a_message_says_what_went_wrong(error: BaseException, line: str) -> None:
    assert last_line(error) == line


def test_a_refusal_is_handed_on_as_it_is() -> None:
    assert failure(wrapped(wrapped(REFUSED)), "rollout-0 on a", "generating") is REFUSED


def test_a_refusal_at_an_actors_start_is_no_death_that_another_start_would_mend() -> None:
    found = failure(start_that_raised("raft_ray.errors.DataError: a.jsonl: line 3: empty"), "rollout-0", "starting")

    assert (type(found), str(found)) == (DataError, "a.jsonl: line 3: empty")


@pytest.mark.parametrize("error", [lost(), wrapped(lost())])
def test_an_object_that_is_gone_is_no_death_of_the_actor(error: RayError) -> None:
    found = failure(error, "rollout-0 on a", "loading")

    assert isinstance(found, DataLost)
    assert str(found).startswith("rollout-0 on a: an object was lost while loading: ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (wrapped(ValueError("no such row")), "rollout-0 on a failed while generating: ValueError('no such row')"),
        (ActorDiedError(), "rollout-0 on a died while generating: The actor died unexpectedly before"),
        (start_that_raised("ImportError: no vllm"), "rollout-0 on a failed while generating: ImportError: no vllm"),
    ],
)
def test_a_defect_and_a_death_lose_the_actor(error: RayError, message: str) -> None:
    found = failure(error, "rollout-0 on a", "generating")

    assert isinstance(found, ActorLost)
    assert str(found).startswith(message)


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (wrapped(REFUSED), DataError, "^a.jsonl: line 3: empty$"),
        (wrapped(ValueError("a defect")), ValueError, "^a defect$"),
        (ActorDiedError(), RaftError, r"^EvalActor on a: the process died \(The actor died unexpectedly"),
        (GetTimeoutError(), RaftError, "^EvalActor on a: no answer within 3 s"),
    ],
)
def test_who_waits_for_a_call_gets_a_refusal_a_defect_or_the_name_of_who_is_gone(
    raised: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(remote.ray, "get", call)

    with pytest.raises(kind, match=message):
        get("ref", 3, "EvalActor on a")


MEMORY_LINE = (
    "Ray killed RolloutActor.generate (pid 41, 6.25 GB) and a worker (pid 42, 3.5 GB) for memory on 10.0.0.7, whose "
    "memory was full (22.9 of 24.0 GB); lower rollout.actors"
)


def died(text: str) -> ActorDiedErrorContext:
    return ActorDiedErrorContext(error_message=text, class_name="TeacherActor", actor_id=b"0" * 16)


TRACEBACK = """Traceback (most recent call last):
  File "actors/refine/workers.py", line 1, in __call__
raft_ray.errors.DataError: a.jsonl: line 3: empty

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (wrapped(UserCodeException("UDF failed"), TRACEBACK), DataError, "a.jsonl: line 3: empty"),
        (RaftError("not Ray's"), RaftError, "not Ray's"),
        (TimeoutError("no worker\nwithin 9 s"), RaftError, "stage 1 failed: within 9 s; see logs/refine-*.log"),
        (
            wrapped(
                UserCodeException("UDF failed"), "Traceback ...\nactors.runtime.remote.ActorLost: engine-0 on a died"
            ),
            RaftError,
            "engine-0 on a died",
        ),
    ],
)
def test_a_failure_of_ray_data_is_the_workers_own_error_or_one_line(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with (
        pytest.raises(kind, match=f"^{re.escape(message)}$"),
        quiet_data("stage 1 failed", "logs/refine-*.log", start_timeout=9),
    ):
        raise error


FULL_MEMORY = """The actor died unexpectedly before finishing this task.
\tclass_name: TeacherActor
2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 1f) was 22.9GB \
used / 24.0GB limit (0.953)
Top users:
(task name=RolloutActor.generate, pid=41, actual memory used=6.25GB, worker ID=ab)
(actor ID=77, pid=42, actual memory used=3.5GB, worker ID=cd)
Refer to the documentation on how to address the out of memory issue."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OutOfMemoryError(FULL_MEMORY), MEMORY_LINE),
        (ActorDiedError(died(FULL_MEMORY)), MEMORY_LINE),
        (WorkerGroupError("page", {1: OutOfMemoryError(FULL_MEMORY)}), f"learner-1: {MEMORY_LINE}"),
        (GetTimeoutError("Get timed out: some object(s) not ready."), "a call was not answered in time: Get timed out"),
        (ControllerError(ActorDiedError()), "The actor died unexpectedly"),
        (WorkerGroupError("page", {0: ActorDiedError()}), "learner-0: The actor died unexpectedly"),
    ],
)
def test_what_ray_tells_in_a_page_is_one_line(error: Exception, line: str) -> None:
    found = str(understood(error))
    assert found.startswith(line)
    assert "\n" not in found


def test_a_defect_in_an_actor_stays_a_defect() -> None:
    assert understood(wrapped(ZeroDivisionError("a defect"))) is None
    assert understood(WorkerGroupError("page", {0: wrapped(ZeroDivisionError("a defect"))})) is None


def test_an_actor_that_hangs_is_killed_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[object] = []
    answers: list[object] = [GetTimeoutError(), "text", GetTimeoutError(), GetTimeoutError()]

    def answer(*_: object, **__: object) -> object:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(remote.ray, "get", answer)
    monkeypatch.setattr(remote.ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    cache = SimpleNamespace(get=SimpleNamespace(remote=lambda key: f"call for {key}"))
    assert again(cache, "get", "key", limit=3, who="the cache") == "text"
    assert killed == [(cache, False)]
    with pytest.raises(RaftError, match=r"^the cache: no answer within 3 s; it was killed"):
        again(cache, "get", "key", limit=3, who="the cache")


def test_an_address_that_is_no_cluster_is_refused_before_ray_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 2.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name in (address, f"ray://{address}"):
            with pytest.raises(RaftError, match=f"RAY_ADDRESS={name}: nobody answers there"):
                cluster.check_address(name, "RAY_ADDRESS")
        taken.listen()
        cluster.check_address(address, "RAY_ADDRESS")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=http://head:8265: that is a dashboard, for `ray job submit`"):
        cluster.check_address("http://head:8265", "RAY_ADDRESS")
    cluster.check_address("auto", "RAY_ADDRESS")
