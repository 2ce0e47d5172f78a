"""What the pipeline actor answers to `raft-ray status` when a learner hangs, and after a start of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.distill import pipeline as module
from actors.distill.pipeline import NotBegunError, PipelineActor
from actors.engine.weight_sync import WeightVersion
from raft_ray.config import settings
from raft_ray.distill.order import RowOrder
from raft_ray.errors import RaftError
from raft_ray.models.prompts import EncodedRow


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineActor:
    """In this process, of a method that trains on answers alone."""
    monkeypatch.setattr(module, "log_to_file", lambda *_: None)
    config = settings.load("sft", ["data.train=unused.jsonl", "learner.timeout=0.2"])

    def make(table: list[Any], name: str) -> Any:
        raise AssertionError("there are no rollout actors and teachers")

    return PipelineActor(config, RowOrder(8, 4, 1, 0), str(tmp_path), make, make)


async def begun(pipeline: PipelineActor) -> None:
    table: asyncio.Future[dict[int, EncodedRow]] = asyncio.get_running_loop().create_future()
    table.set_result({row: EncodedRow(row, [1], [2], [3]) for row in range(8)})
    await pipeline.begin(WeightVersion(0), [table])  # type: ignore[list-item]


def test_a_learner_that_does_not_come_back_takes_the_place_of_the_advice(pipeline: PipelineActor) -> None:
    async def work() -> None:
        await begun(pipeline)
        await pipeline.next_batch(0, 0, 1)
        (rank,) = pipeline.status()["ranks"]
        assert (rank["name"], rank["state"]) == ("learner-0", "trains step 0")
        assert pipeline.status()["advice"] is None
        await asyncio.sleep(0.3)
        assert pipeline.status()["advice"].startswith("learner-0 trains step 0 and has not been heard of for ")
        await pipeline.next_batch(1, 0, 1)
        assert pipeline.status()["advice"] is None
        await pipeline.finish()

    asyncio.run(work())


def test_a_method_that_does_not_distil_is_not_charged_for_the_weights_of_its_export(pipeline: PipelineActor) -> None:
    async def work() -> None:
        await begun(pipeline)
        await pipeline.publish(WeightVersion(1, "packed", 7, 100), {"tokens": 1, "seconds": {}})
        progress = pipeline.progress()
        assert (progress["step"], progress["last"]["object_store_peak"]) == (1, 0)
        await pipeline.finish()

    asyncio.run(work())


def test_a_process_that_was_started_again_says_so_and_sends_the_learners_back_to_their_beginning(
    pipeline: PipelineActor,
) -> None:
    with pytest.raises(RaftError, match="are starting again; ask in a minute"):
        pipeline.status()
    with pytest.raises(NotBegunError):
        asyncio.run(pipeline.hold(1))
    assert pipeline.progress()["step"] == 0
