"""`nccl` and `ipc` from two ZeRO-3 ranks into real vLLM engines, by vLLM's own code on both sides; only CUDA and NCCL
themselves are replaced (`fake_gpu`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import changed_weights
import fake_gpu
import pytest
import ray
import torch
from changed_weights import changed_model, prompt_ids
from http_status import free_port

from actors.distill.rollout import RolloutActor
from raft_ray.config import Config, Dtype, SyncBackend
from raft_ray.distill.order import SampleId
from raft_ray.distill.trajectory import RolloutBatch
from raft_ray.models import TINY, resolve
from raft_ray.models.prompts import EncodedRow

# Workers cannot import test modules: they travel as code.
for module in (sys.modules[__name__], changed_weights, fake_gpu):
    ray.cloudpickle.register_pickle_by_value(module)

TOKENS = 12


class Rollout(RolloutActor):
    """A rollout actor with a GPU; `gpu` is its name."""

    def __init__(self, config: Config, name: str, run_dir: str, gpu: str) -> None:
        ids = prompt_ids()
        super().__init__(config, resolve(TINY), [ray.put({0: EncodedRow(0, ids, [2], ids)})], name, run_dir)
        fake_gpu.install(gpu, run_dir)

    def corrupt_next(self) -> None:
        fake_gpu.Communicator.corrupt = True

    def fail_next(self) -> None:
        fake_gpu.Communicator.fail = True

    def answer(self) -> tuple[int, list[int]]:
        """The version that sampled, and the greedy tokens."""
        _, (trajectory,) = self.generate(RolloutBatch(0, 0, (SampleId(0, 0),)))
        return trajectory.version, trajectory.token_ids.tolist()


class Learner:
    """A rank under ZeRO-3 with a publisher for each back end."""

    def __init__(self, config: Config, rank: int, ranks: int, port: int, run_dir: str) -> None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        torch.set_num_threads(1)
        from actors.distill.student_engine import make_engine
        from actors.engine import weight_push
        from actors.engine.weight_sync import Publisher

        # Many parts for a model of two layers.
        weight_push.PACKED_BYTES = 2**15
        self.engine = make_engine(config, resolve(TINY))
        self.model = self.engine.module.model
        self.members: dict[str, Any] = {}
        self.held: list[int] = []
        self.publishers = {}
        for backend in SyncBackend:
            config.sync.backend = backend
            self.publishers[backend] = Publisher(config, self.model, rank, self.hold)
        fake_gpu.install(f"gpu-{rank}", run_dir)

    def hold(self, version: int) -> dict[str, Any]:
        self.held.append(version)
        return self.members

    def set_weights(self, seed: int) -> None:
        import deepspeed

        new = dict(changed_model(seed).named_parameters())
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(new[name])

    def publish(self, backend: SyncBackend, version: int, members: dict[str, Any]) -> Any:
        self.members = members
        return self.publishers[backend].publish(version)

    def pack(self, version: int) -> Any:
        return self.publishers[SyncBackend.nccl].pack(version)

    def epoch(self, backend: SyncBackend) -> int:
        return self.publishers[backend].push.epoch

    def versions_held(self) -> list[int]:
        return self.held

    def source(self) -> tuple[list[tuple[str, torch.dtype, tuple[int, ...]]], list[tuple[str, torch.Tensor]]]:
        """What vLLM's trainers get: the declared and, of two passes at once, the first's tensors."""
        source = self.publishers[SyncBackend.nccl].push.source
        tensors = list(source)
        list(source)
        return [(m.name, m.dtype, m.shape) for m in source.metadata()], tensors


class System:
    """Two ranks, and three rollout actors: two in the NCCL group, one on the GPU of the second rank."""

    def __init__(self, run_dir: Path) -> None:
        from actors.runtime.cluster import actor_options

        config = Config()
        config.model.path, config.model.dtype, config.model.context = TINY, Dtype.float32, 256
        config.rollout.temperature, config.rollout.max_new_tokens = 0.0, TOKENS
        config.learner.zero_stage = 3
        config.sync.timeout = 300
        options = actor_options(role="test", num_cpus=1, num_gpus=0, threads=1)
        learner, port = ray.remote(Learner).options(**options), free_port()
        self.learners = [learner.remote(config, rank, 2, port, str(run_dir)) for rank in range(2)]
        rollout = ray.remote(Rollout).options(**options)
        self.rollouts = {}
        for name, backend in (("nccl-0", SyncBackend.nccl), ("nccl-1", SyncBackend.nccl), ("ipc-0", SyncBackend.ipc)):
            config.sync.backend = backend
            self.rollouts[name] = rollout.remote(config, name, str(run_dir), "gpu-1")

    def all_ranks(self, method: str, *arguments: Any) -> list[Any]:
        found: list[Any] = ray.get([getattr(rank, method).remote(*arguments) for rank in self.learners], timeout=400)
        return found

    def publish(self, version: int, *names: str) -> Any:
        """Set new weights, publish them, and return rank 0's update."""
        self.all_ranks("set_weights", version)
        backend = SyncBackend(names[0].split("-")[0])
        return self.all_ranks("publish", backend, version, {name: self.rollouts[name] for name in names})[0]

    def ask(self, name: str, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self.rollouts[name], method).remote(*arguments), timeout=400)

    def epoch(self) -> int:
        epoch: int = ray.get(self.learners[0].epoch.remote(SyncBackend.nccl), timeout=300)
        return epoch


@pytest.fixture(scope="module")
def system(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    built = System(tmp_path_factory.mktemp("run"))
    ray.get([rollout.ready.remote() for rollout in built.rollouts.values()], timeout=400)
    yield built
    for actor in (*built.learners, *built.rollouts.values()):
        ray.kill(actor)


def expected(version: int) -> tuple[int, list[int]]:
    """What an actor answers with these weights."""
    model, ids = changed_model(version), prompt_ids()
    out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0]
    return version, out[len(ids) :].tolist()


def test_the_source_yields_full_tensors_under_zero_3_that_outlive_their_gathering(system: System) -> None:
    system.all_ranks("set_weights", 9)
    want = dict(changed_model(9).named_parameters())
    for declared, tensors in system.all_ranks("source"):
        assert [name for name, _, _ in declared] == list(want)
        assert declared == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors]
        for name, tensor in tensors:
            assert torch.equal(tensor, want[name])


@pytest.mark.parametrize("names", [("nccl-0", "nccl-1"), ("ipc-0",)])
def test_after_a_push_every_engine_answers_as_the_new_weights_do(system: System, names: tuple[str, ...]) -> None:
    for version in (1, 2):
        update = system.publish(version, *names)
        assert (update.version, update.packed) == (version, None)
        assert update.checksum != 0
        assert update.nbytes == sum(p.nbytes for p in changed_model(version).parameters())
        for name in names:
            assert system.ask(name, "answer") == expected(version)
    assert ray.get(system.learners[0].versions_held.remote(), timeout=300)[-2:] == [1, 2]
    assert ray.get(system.learners[1].versions_held.remote(), timeout=300) == []


def test_the_group_is_built_anew_only_when_its_members_change(system: System) -> None:
    system.publish(3, "nccl-0", "nccl-1")
    first = system.epoch()
    system.publish(4, "nccl-0", "nccl-1")
    assert system.epoch() == first
    system.publish(5, "nccl-1")
    assert system.epoch() == first + 1
    assert system.ask("nccl-0", "answer") == expected(4)
    assert system.ask("nccl-1", "answer") == expected(5)
    with pytest.raises(ray.exceptions.RayTaskError, match=rf"nccl-0 on .*group {first + 1}, this actor is in group"):
        system.ask("nccl-0", "start_update", 6, first + 1)
    system.publish(7, "nccl-0", "nccl-1")
    assert system.epoch() == first + 2
    assert system.ask("nccl-0", "answer") == system.ask("nccl-1", "answer") == expected(7)


@pytest.mark.parametrize("name", ["nccl-0", "ipc-0"])
def test_a_run_of_any_back_end_starts_from_a_packed_version(system: System, name: str) -> None:
    system.all_ranks("set_weights", 8)
    update, other = system.all_ranks("pack", 8)
    assert (other.packed, other.version) == (None, 8)
    system.ask(name, "load_weights", update)
    assert system.ask(name, "answer") == expected(8)


def test_weights_that_change_on_the_way_are_refused_and_the_next_ones_are_taken(system: System) -> None:
    system.ask("nccl-0", "corrupt_next")
    with pytest.raises(ray.exceptions.RayTaskError, match=r"nccl-0 on .*: weights of version 10 \(checksum .*was sent"):
        system.publish(10, "nccl-0")
    with pytest.raises(ray.exceptions.RayTaskError, match="before it was given a weight version"):
        system.ask("nccl-0", "answer")
    system.publish(11, "nccl-0")
    assert system.ask("nccl-0", "answer") == expected(11)


def test_an_actor_that_fails_half_way_ends_the_push_by_its_name_and_takes_the_next_one(system: System) -> None:
    """The sender waits for it in the broadcast, as NCCL does, until the group is aborted; no rank is left behind."""
    system.publish(12, "nccl-1")
    system.ask("nccl-0", "fail_next")
    with pytest.raises(ray.exceptions.RayTaskError, match=r"nccl-0 failed while receiving .* version 13: .*NCCL error"):
        system.publish(13, "nccl-0")
    system.publish(14, "nccl-0")
    assert system.ask("nccl-0", "answer") == expected(14)


def test_an_update_that_its_learner_left_open_does_not_stand_in_the_way_of_the_next(system: System) -> None:
    system.publish(15, "nccl-0")
    system.ask("nccl-0", "start_update", 16, system.epoch())
    system.publish(17, "nccl-0")
    assert system.ask("nccl-0", "answer") == expected(17)
