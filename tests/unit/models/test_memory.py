"""A run that cannot fit into this machine's memory is refused before anything starts, by role."""

from __future__ import annotations

import pytest

from raft_ray.config import Config, settings
from raft_ray.errors import ConfigError
from raft_ray.models.memory import check_memory, least_gib

GIB = 2**30


def config(*overrides: str) -> Config:
    return settings.load("smoke", ["model.dtype=bfloat16", "learner.zero_stage=1", *overrides])


def test_what_a_billion_parameters_take_by_role() -> None:
    # Bytes per parameter: learner 2 + 4 + 12, rollout and teacher 2, and 2 on the way.
    assert least_gib(config(), GIB) == pytest.approx(
        {"learner": 18.4, "rollout": 2.9, "teacher": 2.4, "object store": 2}
    )
    assert least_gib(config("distill.method=sft"), GIB) == pytest.approx({"learner": 18.4})
    given = config("distill.method=opd", "distill.off_policy=true")
    assert least_gib(given, GIB) == pytest.approx({"learner": 18.4, "teacher": 2.4})
    full = config("model.dtype=float32", "learner.zero_stage=0")
    assert least_gib(full, GIB)["learner"] == pytest.approx(16.4)
    placed = config("learner.lora.rank=16", "teacher.place=learner")
    assert least_gib(placed, GIB) == pytest.approx({"learner": 2.4, "rollout": 2.9, "object store": 2})
    # Beside frozen weights there is little.
    assert least_gib(config("learner.lora.rank=16"), GIB)["learner"] == pytest.approx(2.4)


@pytest.mark.parametrize(("stage", "bytes_"), [(1, 2 + 4 + 12 / 4), (2, 2 + 4 / 4 + 12 / 4), (3, 18 / 4)])
def test_ranks_share_what_their_stage_shards(stage: int, bytes_: float) -> None:
    four = config("learner.num_workers=4", f"learner.zero_stage={stage}", "learner.global_batch_size=4")
    assert least_gib(four, GIB)["learner"] == pytest.approx(4 * (bytes_ + 0.4))


def test_roles_on_gpus_take_none_of_it() -> None:
    gpus = config("learner.num_gpus=1", "rollout.num_gpus=1", "teacher.num_gpus=1")
    assert set(least_gib(gpus, GIB)) == {"object store"}


def test_a_run_that_cannot_fit_is_refused_and_one_that_may_is_not() -> None:
    check_memory(config(), 135_000_000, 24 * GIB)
    with pytest.raises(
        ConfigError, match=r"3 billion parameters need at least .* \(learner 50\.\d, .*has 24\.0; lower"
    ):
        check_memory(config(), 3_000_000_000, 24 * GIB)
