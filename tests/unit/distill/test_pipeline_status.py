"""What the pipeline actor answers to `raft-ray status` when a learner hangs, and after a start of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flow_fakes import PACKED, Actor

from actors.distill import pipeline as module
from actors.distill.pipeline import BeginAnewError, PipelineActor
from actors.engine.weight_sync import WeightVersion
from actors.runtime.remote import ActorLost
from raft_ray.config import settings
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import RolloutBatch
from raft_ray.errors import RaftError
from raft_ray.models.prompts import EncodedRow
from raft_ray.runs.spans import read_spans


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


def test_a_learner_that_is_its_own_teacher_scores_then_trains_and_its_targets_are_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "log_to_file", lambda *_: None)
    monkeypatch.setattr("actors.distill.actor_group.kill", lambda _: None)
    made: list[str] = []

    def make(table: list[Any], name: str) -> Any:
        made.append(name)
        return Actor(name)

    keys = ["data.train=unused.jsonl", "learner.global_batch_size=4", "learner.lora.rank=4", "teacher.place=learner"]
    pipeline = PipelineActor(settings.load("raft", keys), RowOrder(8, 4, 1, 0), str(tmp_path), make, make)

    def state() -> str:
        return str(pipeline.status()["ranks"][0]["state"])

    async def work() -> None:
        table: Any = asyncio.get_running_loop().create_future()
        table.set_result({row: EncodedRow(row, [1], [2], [3]) for row in range(8)})
        with pytest.raises(BeginAnewError):
            pipeline.scored(0, 0, [])
        await pipeline.begin(WeightVersion(0, PACKED), [table])
        batch = await pipeline.next_batch(0, 0, 1)
        assert state() == "scores step 0"
        infos = [replace(info, teacher_mass=0.5, target_bytes=12) for info, _, _ in batch if info]
        pipeline.scored(0, 0, infos)
        assert state() == "trains step 0"
        seconds = {"checkpoint": 0.0, "wait": 1.0, "teacher": 2.0, "forward_backward": 1.0, "total": 4.0}
        await pipeline.publish(WeightVersion(1, PACKED), {"tokens": 1, "seconds": seconds})
        last = pipeline.progress()["last"]
        assert (last["teacher_mass"], last["target_bytes_per_token"], last["seconds"]["teacher"]) == (0.5, 12, 2.0)
        await pipeline.finish()

    asyncio.run(work())
    assert made == ["rollout-0"]
    spans = [span for span in read_spans(tmp_path / "spans.jsonl") if span.who == "learner"]
    assert [span.what for span in spans] == ["checkpoint", "wait", "score", "forward_backward"]


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
    with pytest.raises(BeginAnewError):
        asyncio.run(pipeline.hold(1))
    assert pipeline.progress()["step"] == 0


@pytest.mark.parametrize("staleness", [0, 1])
def test_learners_begin_anew_where_the_last_actor_with_the_weights_that_were_pushed_dies_and_they_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    monkeypatch.setattr(module, "log_to_file", lambda *_: None)
    monkeypatch.setattr("actors.distill.actor_group.kill", lambda _: None)
    died: list[int] = []

    async def generate(actor: Actor, batch: RolloutBatch) -> Any:
        if batch.step == 2 and not died:
            died.append(batch.step)
            raise ActorLost(f"{actor.name} died while generating")
        return await actor._generate(batch)

    def make(table: list[Any], name: str) -> Any:
        return Actor(name, generate=generate)

    keys = ["data.train=unused.jsonl", "learner.global_batch_size=4", "sync.backend=nccl", "learner.timeout=20"]
    config = settings.load("raft", [*keys, f"sync.max_staleness={staleness}"])
    pipeline = PipelineActor(config, RowOrder(16, 4, 1, 0), str(tmp_path), make, make)

    async def work() -> None:
        table: Any = asyncio.get_running_loop().create_future()
        table.set_result({row: EncodedRow(row, [1], [2], [3]) for row in range(16)})

        async def train(step: int) -> None:
            assert len(await pipeline.next_batch(step, 0, 1)) == 4
            for actor in (await pipeline.hold(step + 1)).values():
                actor.version = step + 1
            await pipeline.publish(WeightVersion(step + 1), {"tokens": 1, "seconds": {}})

        await pipeline.begin(WeightVersion(0, PACKED), [table])
        for step in range(2):
            await train(step)
        if not staleness:
            with pytest.raises(BeginAnewError, match="no rollout actor is left that holds version 2, which was pushed"):
                await train(2)
            await pipeline.begin(WeightVersion(2, PACKED), [table])
        # With a staleness of 1 it died before the learners came to that step: their next push reached its successor.
        for step in range(2, 4):
            await train(step)
        assert died == [2]
        await pipeline.finish()

    asyncio.run(work())
