"""How many rollout actors the cluster has room for, and no more are started."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import ray

from actors.distill.slots import PLENTY, Growth, Slots, free_slots
from actors.runtime.loops import Loops
from raft_ray.config import settings


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_two_looks_for_room_at_once_start_no_more_than_fits() -> None:
    class Two:
        each = "1 CPUs"

        def free(self, have: int) -> int:
            return 2 - have

        def ask(self, wanted: int) -> None:
            del wanted

    async def work() -> None:
        started: list[Any] = []

        class Started:
            wanted = 0

            def __len__(self) -> int:
                return len(started)

            def add(self, placed: bool) -> None:
                started.append(placed)

        room: Any = Two()
        rollouts: Any = Started()
        loops = Loops(5)
        growth = Growth(room, loops, rollouts, lambda _: None)
        await asyncio.gather(growth.to(5), growth.to(5))
        assert len(started) == 2
        loops.cancel()

    run(work())


@pytest.mark.parametrize(
    ("keys", "room"),
    [([], 5), (["teacher.place=learner", "learner.lora.rank=4"], 6)],
)
def test_room_is_kept_for_teachers_where_there_are_any(
    keys: list[str], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cluster_resources", "available_resources"):
        monkeypatch.setattr(ray, name, lambda: {"CPU": 8.0})
    config = settings.load("raft", ["data.train=unused.jsonl", *keys])
    assert Slots(config).free(0) == room


@pytest.mark.parametrize(
    ("total", "available", "each", "have", "room"),
    [
        # Three CPUs are for teacher, learner and pipeline, though one of them is free at the moment.
        ({"CPU": 8}, {"CPU": 5}, {"CPU": 1, "GPU": 0}, 1, 4),
        ({"CPU": 8}, {"CPU": 5}, {"CPU": 1, "GPU": 0}, 5, 0),
        ({"CPU": 8}, {"CPU": 1}, {"CPU": 1, "GPU": 0}, 1, 1),
        ({"CPU": 8}, {"CPU": 8}, {"CPU": 2, "GPU": 0}, 0, 2),
        ({"CPU": 64, "GPU": 2}, {"CPU": 60, "GPU": 2}, {"CPU": 1, "GPU": 0.5}, 1, 3),
        ({"CPU": 2}, {}, {"CPU": 1, "GPU": 0}, 1, 0),
        ({"CPU": 8}, {"CPU": 8}, {"CPU": 0, "GPU": 0}, 3, PLENTY),
    ],
)
def test_room_is_what_is_free_without_what_the_other_roles_need(
    total: dict[str, float], available: dict[str, float], each: dict[str, float], have: int, room: int
) -> None:
    assert free_slots(total, available, {"CPU": 3, "GPU": 0}, each, have) == room
