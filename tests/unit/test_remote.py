"""What is left of an error after Ray, Ray Train and Ray Data have wrapped it; no Ray is started."""

from __future__ import annotations

import re

import pytest
from ray.data.exceptions import UserCodeException
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError

from actors import remote
from actors.data_context import quiet_data
from actors.remote import ActorLost, DataLost, failure, get, last_line, root_cause
from raft_ray.errors import DataError, RaftError

REFUSED = DataError("a.jsonl: line 3: empty")


def wrapped(error: Exception, traceback: str = "Traceback ...") -> RayTaskError:
    """An error of a call, as `ray.get` raises it."""
    return RayTaskError("call", traceback, error).as_instanceof_cause()


def lost() -> ObjectLostError:
    return ObjectLostError("00" * 28, owner_address=None, call_site="")


@pytest.mark.parametrize(
    "error",
    [REFUSED, wrapped(REFUSED), wrapped(wrapped(REFUSED)), WorkerGroupError("rank 1 failed", {1: wrapped(REFUSED)})],
    ids=["plain", "one call", "a call in a call", "a rank"],
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


TRACEBACK = """Traceback (most recent call last):
  File "actors/refine_workers.py", line 1, in __call__
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
            wrapped(UserCodeException("UDF failed"), "Traceback ...\nactors.remote.ActorLost: engine-0 on a died"),
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
