"""The flow of rows among actors of the test's own, in one process: who is started, who waits, who goes, and when."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from flow_fakes import PACKED, Actor, Running

from actors.distill import flow
from actors.distill.actor_group import MAX_FAILED_STARTS, State
from actors.distill.validation import Evaluation, Part
from actors.engine.weight_sync import WeightVersion
from actors.runtime.remote import ActorLost, DataLost
from raft_ray.config import Config, DomainMetric, settings
from raft_ray.distill.trajectory import RolloutBatch
from raft_ray.errors import RaftError
from raft_ray.evaluate.validation import Question, ValidationSet


def config(*keys: str) -> Config:
    return settings.load("raft", ["data.train=unused.jsonl", "sync.max_staleness=1", *keys])


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_every_row_is_trained_once_however_many_actors_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        running = Running(config("rollout.actors=5", "learner.global_batch_size=8"), 40, monkeypatch)
        trained = [info for step in range(5) for info in await running.train(step)]
        assert sorted(info.sample_id.row for info in trained) == list(range(40))
        assert all(0 <= index // 8 - info.version <= 1 for index, info in enumerate(trained))

    run(work())


def test_given_trajectories_are_of_the_newest_version_though_no_weights_come_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        keys = ("distill.method=opd", "distill.off_policy=true", "learner.global_batch_size=4", "sync.max_staleness=0")
        running = Running(config(*keys), 12, monkeypatch)
        for step in range(3):
            assert {info.version for info in await running.train(step, pushed=True)} == {step}

    run(work())


def test_where_learners_are_the_teacher_a_step_is_ready_once_it_is_sampled_and_has_its_rollout_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        keys = ("teacher.place=learner", "learner.lora.rank=4", "learner.global_batch_size=4", "rollout.batch_rows=2")
        running = Running(config(*keys), 12, monkeypatch)
        for step in range(3):
            infos = await running.shard(step)
            assert len(infos) == 4
            found = running.flow.ledger.shard(step, 0, 1)
            assert found is not None
            assert len({id(ref) for _, ref in found}) == 2
            for info, trajectories in found:
                assert info in await trajectories
            # Rollouts of the next step do not wait for this one's scoring.
            await running.settled()
            assert running.flow.ledger.generated_whole(step + 1) or step == 2
            done = replace(infos[0], teacher_mass=0.5)
            running.flow.ledger.scored_by_learners[done.sample_id] = done
            assert running.flow.ledger.done(step) == [done, *infos[1:]]
            running.flow.publish(WeightVersion(step + 1, PACKED))
        assert not running.flow.ledger.scored_by_learners

    run(work())


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_evaluation_goes_before_all_rollouts_and_loses_no_part_with_an_actor(
    monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    said: list[tuple[str, int]] = []

    async def answer(actor: Actor, part: Part) -> Any:
        said.append(("answer", part.step))
        await asyncio.sleep(0)
        if len(said) == 2:
            raise ActorLost(f"{actor.name} died while answering")
        return await actor._answer(part)

    async def generate(actor: Actor, batch: RolloutBatch) -> Any:
        said.append(("generate", batch.step))
        return await actor._generate(batch)

    async def work() -> None:
        keys = (f"sync.max_staleness={staleness}", "rollout.actors=2", "learner.global_batch_size=4")
        running = Running(config(*keys), 16, monkeypatch, generate=generate, answer=answer)
        await running.shard(0)
        await running.settled()
        before = len(said)
        said.clear()
        asked = ValidationSet([Question("general", [1, 2], 4) for _ in range(100)], DomainMetric.auto, 10)
        going = running.flow.evaluation = Evaluation(1, asked)
        await running.train(0)
        await running.loops.wait_for(lambda: going.complete, lambda: "it")
        assert sorted(going.answers) == list(range(100))
        # Four parts, one of them twice.
        assert said[:5] == [("answer", 1)] * 5
        for step in range(1, 4):
            await running.train(step)
        assert before + [what for what, _ in said].count("generate") == 8
        assert running.flow.evaluation is None

    run(work())


def test_without_rollouts_the_actors_answer_evaluations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def generate(actor: Actor, batch: RolloutBatch) -> Any:
        raise AssertionError("there is nothing to sample")

    async def work() -> None:
        keys = ("distill.method=sft", "learner.global_batch_size=4")
        running = Running(config(*keys), 8, monkeypatch, generate=generate)
        asked = ValidationSet([Question("general", [1], 4)], DomainMetric.auto, 10)
        going = running.flow.evaluation = Evaluation(0, asked)
        await running.loops.wait_for(lambda: going.complete, lambda: "it")
        await running.settled()
        assert running.loops.error is None

    run(work())


def test_an_actor_that_dies_at_every_start_is_given_up_with_the_cause_of_its_first_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaths = 0

    async def ready(_: Actor) -> str:
        nonlocal deaths
        deaths += 1
        raise ActorLost(f"rollout-0 died while starting: cause {deaths}")

    async def work() -> None:
        running = Running(config("learner.global_batch_size=4", "rollout.max_restarts=50"), 8, monkeypatch, ready=ready)
        with pytest.raises(RaftError, match=r"cause 1 \(so it began; it died 3 times in a row while it started\)"):
            await running.shard(0)

    run(work())
    assert deaths == MAX_FAILED_STARTS


def test_an_actor_that_is_given_up_is_no_longer_wanted_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def generate(actor: Actor, batch: RolloutBatch) -> Any:
        if actor.name == "rollout-0":
            raise ActorLost("rollout-0 died while generating")
        return await actor._generate(batch)

    async def work() -> None:
        keys = ("rollout.actors=2", "rollout.max_restarts=0", "learner.global_batch_size=8")
        running = Running(config(*keys), 16, monkeypatch, generate=generate)
        assert len(await running.shard(0)) == 8
        assert (running.rollouts.wanted, running.flow.growth.waits) == (1, None)
        assert [what for what, _ in running.events] == ["lost", "given up"]

    run(work())


def test_deaths_after_a_start_do_not_add_up_to_a_start_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    died = []

    async def generate(actor: Actor, batch: RolloutBatch) -> Any:
        if len(died) < MAX_FAILED_STARTS + 2:
            died.append(batch)
            raise ActorLost("died while generating")
        return await actor._generate(batch)

    async def work() -> None:
        keys = ("learner.global_batch_size=1", "rollout.batch_rows=1", "rollout.max_failures=9")
        running = Running(config(*keys), 4, monkeypatch, generate=generate)
        assert len(await running.shard(0)) == 1

    run(work())
    assert len(died) == MAX_FAILED_STARTS + 2


def test_actors_that_are_dismissed_while_actors_are_held_leave_after_the_push(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        running = Running(config("rollout.actors=4", "learner.global_batch_size=4"), 16, monkeypatch)
        await running.shard(0)
        held = await running.flow.hold(1)
        assert len(held) == 4
        await running.flow.resize(2)
        await running.settled()
        assert not any(actor.killed for actor in running.made)
        await running.train(0, pushed=True)
        await running.settled()
        assert [actor.name for actor in running.made if actor.killed] == ["rollout-2", "rollout-3"]
        assert len(await running.shard(1)) == 4

    run(work())


def test_an_actor_that_starts_does_not_keep_a_push_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = asyncio.Event()

    async def ready(actor: Actor) -> str:
        if actor.name != "rollout-0":
            await slow.wait()
        return "here"

    async def work() -> None:
        running = Running(config("rollout.actors=2", "learner.global_batch_size=4"), 8, monkeypatch, ready=ready)
        await running.shard(0)
        assert list(await running.flow.hold(1)) == ["rollout-0"]

    run(work())


def test_an_actor_whose_version_was_lost_does_not_keep_a_push_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def load_weights(actor: Actor, weights: WeightVersion) -> float:
        raise DataLost("the owner of the weights died")

    async def work() -> None:
        running = Running(config("learner.global_batch_size=4"), 8, monkeypatch, load_weights=load_weights)
        await running.settled()
        (member,) = running.rollouts
        assert member.state is State.WEIGHTLESS
        assert list(await running.flow.hold(1)) == ["rollout-0"]
        running.made[0].version = 1
        running.flow.publish(WeightVersion(1))
        await running.settled()
        assert member.version == 1
        assert [info.version for info in await running.shard(0)] == [1] * 4

    run(work())


def test_a_push_waits_for_the_first_actor_that_can_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    begins = asyncio.Event()

    async def ready(_: Actor) -> str:
        await begins.wait()
        return "here"

    async def work() -> None:
        running = Running(config("learner.global_batch_size=4"), 8, monkeypatch, ready=ready)
        held = asyncio.ensure_future(running.flow.hold(1))
        await running.settled()
        assert not held.done()
        begins.set()
        assert list(await held) == ["rollout-0"]

    run(work())


def test_a_step_is_cut_for_the_actors_that_are_there_not_for_those_that_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[RolloutBatch] = []

    async def generate(actor: Actor, batch: RolloutBatch) -> Any:
        batches.append(batch)
        return await actor._generate(batch)

    async def work() -> None:
        running = Running(
            config("rollout.actors=2", "learner.global_batch_size=12", "sync.max_staleness=0"),
            36,
            monkeypatch,
            room=3,
            generate=generate,
        )
        await running.flow.resize(50)
        await running.settled()
        assert (len(running.rollouts), running.rollouts.wanted) == (3, 50)
        assert running.flow.growth.waits == "47 of 50 wait for room, each takes 1 CPUs"
        batches.clear()
        await running.train(0)
        await running.train(1)
        assert {len(batch.sample_ids) for batch in batches if batch.step == 1} == {4}
        running.room = 4
        while len(running.rollouts) < 4:
            await asyncio.sleep(0.01)
        await running.flow.resize(1)
        assert running.flow.growth.waits is None

    run(work())


def work_of_a_step(actors: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Calls of Python functions in the flow, the loops and the books for a step with one rollout batch an actor."""
    calls = 0
    files = (
        "actors/distill/flow.py",
        "actors/runtime/loops.py",
        "actors/distill/actor_group.py",
        "raft_ray/distill/ledger.py",
        "raft_ray/distill/order.py",
    )

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        # Comprehensions and generators count too: they are where a scan would hide.
        calls += event == "call" and frame.f_code.co_filename.endswith(files)

    async def work() -> None:
        running = Running(
            config(f"rollout.actors={actors}", f"learner.global_batch_size={actors}"), 5 * actors, monkeypatch
        )
        await running.train(0)
        await running.train(1)
        sys.setprofile(count)
        await running.train(2)
        sys.setprofile(None)

    run(work())
    return calls


def test_the_work_of_a_step_grows_with_its_chunks_and_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (work_of_a_step(actors, monkeypatch) / actors for actors in (32, 256))
    assert many < 1.2 * few


@pytest.mark.parametrize("role", ["rollout", "teacher"])
def test_an_actor_that_dies_while_it_waits_for_work_is_replaced_before_there_is_any(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "PING", 0.0)
    answers: dict[str, int] = {}

    async def ready(actor: Actor) -> str:
        """The first process of the role's dies after its start, while it is idle."""
        answers[actor.name] = answers.get(actor.name, 0) + 1
        if actor.name == f"{role}-0" and answers[actor.name] == 2:
            raise ActorLost(f"{role}-0 died while waiting for work")
        return "here"

    async def work() -> None:
        functions = {"ready": ready}
        running = Running(
            config("rollout.actors=2", "learner.global_batch_size=4"), 24, monkeypatch, teacher=functions, **functions
        )
        await running.settled()
        assert ("lost", f"{role}-0 died while waiting for work") in running.events
        trained = [info for step in range(6) for info in await running.train(step)]
        assert sorted(info.sample_id.row for info in trained) == list(range(24))

    run(work())


def test_a_chunk_that_comes_while_its_actor_is_found_dead_goes_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "PING", 0.0)
    dies = asyncio.Event()

    async def ready(actor: Actor) -> str:
        if actor.name == "rollout-0" and actor.version >= 0 and not dies.is_set():
            await dies.wait()
            raise ActorLost("rollout-0 died while waiting for work")
        return "here"

    async def work() -> None:
        running = Running(config("rollout.actors=2", "learner.global_batch_size=4"), 24, monkeypatch, ready=ready)
        await running.settled()
        await running.train(0)
        dies.set()
        trained = [info for step in range(1, 6) for info in await running.train(step)]
        assert sorted({info.sample_id.row for info in trained}) == sorted(info.sample_id.row for info in trained)
        assert len(trained) == 20

    run(work())
