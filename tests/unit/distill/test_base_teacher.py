"""A learner as its own teacher: its base's targets, bit for bit, in a teacher actor's batches, without a copy."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from step_fixture import TEMPERATURE, rows_and_samples, tiny_model
from transformers import PreTrainedModel

from actors.distill.base_teacher import BaseTeacher, Unscored
from raft_ray.config import Config, LoraConfig, settings
from raft_ray.distill.order import SampleId
from raft_ray.distill.student import Student, make_micro_batches
from raft_ray.distill.teacher import Target, TeacherBatch, score
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.adapters import add_adapter
from raft_ray.models.prompts import EncodedRow

KEPT, TOKENS = 12, 40
LORA = LoraConfig(rank=3, alpha=12, dropout=0.5)


def config(*keys: str) -> Config:
    found = settings.load("smoke", [f"distill.top_k={KEPT}", f"teacher.tokens={TOKENS}", *keys])
    return found


def trained_student(lora: LoraConfig = LORA, dtype: torch.dtype = torch.float32) -> Student:
    """With an adapter that is far from nothing, in training."""
    model: Any = tiny_model(0).to(dtype)
    add_adapter(model, lora, seed=7)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=drawn).to(dtype))
    return Student(model, TEMPERATURE).train()


def two_rollout_batches() -> tuple[list[EncodedRow], list[list[Trajectory]]]:
    """Rows 0 to 6, of which 5 and 6 rehearse, in two rollout batches."""
    rows, samples = rows_and_samples(7)
    rows = [EncodedRow(row.row, row.prompt, [], row.prompt) if row.row > 4 else row for row in rows]
    made = [sample.trajectory for sample in samples]
    return rows, [made[:4], made[4:]]


def own_teacher(rows: list[EncodedRow], made: list[Trajectory], dtype: torch.dtype = torch.float32) -> list[Target]:
    """What a teacher actor makes of a rollout batch."""
    model = tiny_model(0).to(dtype).eval()
    prompts = [rows[each.sample_id.row].teacher_prompt for each in made]
    return score(model, prompts, [each.token_ids for each in made], top_k=KEPT, tokens=TOKENS)


def same(sample: Sample, target: Target) -> bool:
    ids, logprobs, _ = target
    assert (sample.teacher_ids.dtype, sample.teacher_logprobs.dtype) == (np.int32, np.float16)
    return np.array_equal(sample.teacher_ids, ids) and np.array_equal(sample.teacher_logprobs, logprobs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_targets_are_a_teacher_actors_bit_for_bit_whatever_the_adapter_has_learned(
    dora: bool, dtype: torch.dtype
) -> None:
    lora = LoraConfig(rank=3, alpha=12, dropout=0.5, dora=dora)
    student = trained_student(lora, dtype)
    rows, batches = two_rollout_batches()
    given = [(rows[t.sample_id.row], [Unscored(t.sample_id, made)]) for made in batches for t in made]
    scored, infos = BaseTeacher(student, config(), lambda count: count).score(given)
    wanted = [target for made in batches for target in own_teacher(rows, made, dtype)]
    assert [row.row for row, _ in scored] == list(range(7))
    assert all(same(sample, target) for (_, (sample,)), target in zip(scored, wanted, strict=True))
    by_id = {info.sample_id: info for info in infos}
    for (_, (sample,)), (*_, mass) in zip(scored, wanted, strict=True):
        assert by_id[sample.trajectory.sample_id] == sample.info(mass)
    # The adapter is of weight: with it they are others.
    with torch.no_grad():
        prompts, responses = [row.teacher_prompt for row in rows[:4]], [t.token_ids for t in batches[0]]
        adapted = score(student.model.eval(), prompts, responses, top_k=KEPT, tokens=TOKENS)
    assert not any(same(sample, target) for (_, (sample,)), target in zip(scored, adapted, strict=False))


def test_a_rank_scores_its_part_of_a_rollout_batch_and_leaves_rows_alone_that_nobody_samples() -> None:
    rows, batches = two_rollout_batches()
    part = [batches[0][1], batches[0][3], batches[1][2]]
    given: list[Any] = [(rows[0], [])]
    given += [(rows[t.sample_id.row], [Unscored(t.sample_id, batches[t.sample_id.row // 4])]) for t in part]
    (plain, *scored), infos = BaseTeacher(trained_student(), config(), lambda count: count).score(given)
    assert plain == (rows[0], [])
    wanted = [*own_teacher(rows, part[:2]), *own_teacher(rows, part[2:])]
    assert all(same(sample, target) for (_, (sample,)), target in zip(scored, wanted, strict=True))
    assert len(infos) == 3


def test_scoring_leaves_the_training_as_it_is_and_holds_no_other_model() -> None:
    rows, samples = rows_and_samples(4)
    (batch,) = make_micro_batches(rows, samples, total=4, tokens=500, share_prompt=True)

    def trains(student: Student) -> list[torch.Tensor]:
        torch.manual_seed(3)
        if scores:
            made = [sample.trajectory for sample in samples]
            given = [(row, [Unscored(t.sample_id, made)]) for row, t in zip(rows, made, strict=True)]
            teacher = BaseTeacher(student, config(), lambda count: count)
            before = sum(issubclass(type(each), PreTrainedModel) for each in gc.get_objects())
            teacher.score(given)
            assert sum(issubclass(type(each), PreTrainedModel) for each in gc.get_objects()) == before
        learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
        losses = student(batch)
        return [losses, *torch.autograd.grad(losses.sum(), learned)]

    scores = False
    plain = trains(trained_student())
    scores = True
    after = trains(trained_student())
    assert len(after) == len(plain) > 1
    assert all(torch.equal(one, other) for one, other in zip(after, plain, strict=True))


@pytest.mark.parametrize(("stage", "passes"), [(2, 1), (3, 4)])
def test_ranks_make_as_many_passes_where_each_gathers_parameters(stage: int, passes: int) -> None:
    student = trained_student()
    made: list[TeacherBatch] = []

    class Engine:
        eval, train = staticmethod(student.eval), staticmethod(student.train)

        def __call__(self, batch: TeacherBatch) -> Any:
            assert not student.training
            made.append(batch)
            return student(batch)

    rows, _ = two_rollout_batches()
    trajectory = Trajectory(SampleId(0, 0), 0, np.array([3, 4], np.int32), False, "rollout-0")

    def most(count: int) -> int:
        # Any pass may be one that another rank does not make yet.
        assert len(made) in (0, 4)
        return 4

    teacher = BaseTeacher(Engine(), config(f"learner.zero_stage={stage}"), most)
    ((_, samples),), _ = teacher.score([(rows[0], [Unscored(trajectory.sample_id, [trajectory])])])
    assert len(made) == passes
    assert len(samples) == 1
    assert student.training
    assert teacher.score([]) == ([], [])
    assert len(made) == (passes if stage < 3 else passes + 4)
