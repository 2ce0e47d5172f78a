"""The rollout actors as vLLM's trainer sees them: places in the group, and failures by name instead of a wait."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest
import ray

from actors.engine.weight_push import RolloutClient
from raft_ray.errors import RaftError

pytestmark = pytest.mark.usefixtures("ray_cluster")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Member:
    """Notes its calls; on `receive` does what it was made for."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.calls: list[tuple[Any, ...]] = []

    def join(self, epoch: int, info: dict[str, Any]) -> None:
        self.calls.append(("join", epoch, info))

    def start_update(self, version: int, epoch: int) -> None:
        self.calls.append(("start", version, epoch))

    def receive(self, info: dict[str, Any]) -> None:
        self.calls.append(("receive", info))
        if self.behaviour == "fails":
            raise ValueError("no such parameter")
        if self.behaviour == "refuses":
            raise RaftError("a on node-7: not now")
        if self.behaviour == "dies":
            os._exit(1)
        if self.behaviour == "hangs":
            threading.Event().wait()

    def finish_update(self, version: int, checksum: int) -> None:
        self.calls.append(("finish", version, checksum))

    def noted(self) -> list[tuple[Any, ...]]:
        return self.calls


def make_client(timeout: float = 300, **behaviours: str) -> RolloutClient:
    members = {name: ray.remote(Member).options(num_cpus=0).remote(how) for name, how in behaviours.items()}
    client = RolloutClient(members, epoch=3, workers=2, checksum=lambda: 77, timeout=timeout)
    client.version = 5
    return client


def test_every_actor_gets_its_own_place_in_the_group_and_the_whole_update() -> None:
    client = make_client(a="works", b="works")
    assert client.world_size == 5
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 5})
    client.start_weight_update()
    client.update_weights({"names": ["x"]})
    client.update_weights({"names": ["y"]})
    client.finish_weight_update()
    for name, offset in (("a", 1), ("b", 3)):
        assert ray.get(client.members[name].noted.remote(), timeout=300) == [
            ("join", 3, {"rank_offset": offset, "world_size": 5}),
            ("start", 5, 3),
            ("receive", {"names": ["x"]}),
            ("receive", {"names": ["y"]}),
            ("finish", 5, 77),
        ]


def test_a_back_end_without_ranks_is_told_what_the_trainer_said() -> None:
    client = make_client(a="works")
    client.init_weight_transfer_engine({"packed": True})
    assert ray.get(client.members["a"].noted.remote(), timeout=300) == [("join", 3, {"packed": True})]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("fails", r"a failed while receiving weights of version 5: ValueError\('no such parameter'\)"),
        ("refuses", "a on node-7: not now"),
        ("dies", "a died while receiving weights of version 5: "),
    ],
)
def test_the_actor_that_fails_is_named_while_others_still_wait_for_it(behaviour: str, message: str) -> None:
    client = make_client(a=behaviour, b="hangs")
    with pytest.raises(RaftError, match=message) as caught:
        client.update_weights({})
    assert client.failed.exception(timeout=0) is caught.value


def test_an_actor_that_does_not_answer_in_time_is_named() -> None:
    client = make_client(timeout=3.0, a="works", b="hangs")
    ray.get([handle.noted.remote() for handle in client.members.values()], timeout=300)
    with pytest.raises(RaftError, match=r"^b: still receiving weights of version 5 after sync\.timeout=3 s"):
        client.update_weights({})
