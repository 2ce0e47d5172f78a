"""A step's losses, λ and gradients: the same however the batch is cut, and right against a direct computation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from step_fixture import TEMPERATURE, rows_and_samples, tiny_model, topk_kl
from torch import Tensor

from raft_ray.distill.losses import EmaBalancer, FixedBalancer, token_weights
from raft_ray.distill.order import SampleId
from raft_ray.distill.step import StepLosses, train_step
from raft_ray.distill.student import MicroBatch, Student, empty_micro_batch, make_micro_batches
from raft_ray.distill.teacher import score
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.padding import micro_batches
from raft_ray.models.prompts import EncodedRow


class PlainEngine:
    """The three calls of a DeepSpeed engine on plain torch, with the average over ranks left to the caller."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self.updates = 0

    def __call__(self, batch: MicroBatch) -> Tensor:
        return self.student(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.updates += 1


def gradients(
    rows: Sequence[EncodedRow],
    samples: Sequence[Sample],
    tokens: int,
    keep_graph: bool,
    extra: Sequence[MicroBatch] = (),
    share_prompt: bool = True,
) -> tuple[StepLosses, list[Tensor]]:
    student = Student(tiny_model(0), TEMPERATURE)
    engine = PlainEngine(student)
    batches = make_micro_batches(rows, samples, total=len(rows), tokens=tokens, share_prompt=share_prompt)
    losses = train_step(
        engine,
        [*batches, *extra],
        balancer=EmaBalancer(),
        ranks=1,
        keep_graph=keep_graph,
        reduce=lambda values: values,
    )
    assert engine.updates == 1
    return losses, [p.grad for p in student.parameters() if p.grad is not None]


@pytest.mark.parametrize("share_prompt", [True, False])
def test_the_step_equals_a_direct_computation_of_the_whole_batch(share_prompt: bool) -> None:
    rows, samples = rows_and_samples(6)
    losses, found = gradients(rows, samples, tokens=1000, keep_graph=True, share_prompt=share_prompt)

    model = tiny_model(0)
    sft_terms, kl_terms = [], []
    for row, sample in zip(rows, samples, strict=True):
        logits = model(torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
        sft_terms.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer)))
        response = sample.trajectory.token_ids.tolist()
        logits = model(torch.tensor([[*row.prompt, *response]])).logits[:, len(row.prompt) - 1 : -1]
        kl_terms.append(
            topk_kl(
                logits,
                torch.from_numpy(sample.teacher_ids).unsqueeze(0),
                torch.from_numpy(sample.teacher_logprobs).unsqueeze(0),
                torch.ones(1, len(response)),
                TEMPERATURE,
            )
        )
    sft, kl = torch.stack(sft_terms).mean(), torch.stack(kl_terms).mean()
    weight = float((sft / kl).detach())
    (sft + weight * kl).backward()
    assert losses.sft == pytest.approx(float(sft.detach()), rel=1e-5)
    assert losses.kl == pytest.approx(float(kl.detach()), rel=1e-5)
    assert losses.weight == pytest.approx(weight, rel=1e-5)
    assert losses.loss == pytest.approx(float((sft + weight * kl).detach()), rel=1e-5)
    for grad, parameter in zip(found, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(grad, parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("tokens", [1, 25, 50])
def test_accumulation_gives_the_single_batchs_losses_and_gradients(
    keep_graph: bool, tokens: int, share_prompt: bool
) -> None:
    rows, samples = rows_and_samples(6)
    whole, want = gradients(rows, samples, tokens=1000, keep_graph=True)
    parts, found = gradients(rows, samples, tokens=tokens, keep_graph=keep_graph, share_prompt=share_prompt)
    assert parts.weight == pytest.approx(whole.weight, rel=1e-5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for a, b in zip(want, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_two_ranks_get_the_same_lambda_and_the_single_ranks_gradient() -> None:
    rows, samples = rows_and_samples(6)
    whole, want = gradients(rows, samples, tokens=1000, keep_graph=True)
    sums: list[list[float]] = []

    def losses_of(part: slice) -> list[float]:
        student = Student(tiny_model(0), TEMPERATURE)
        with torch.no_grad():
            (batch,) = make_micro_batches(rows[part], samples[part], total=6, tokens=1000, share_prompt=True)
            found: list[float] = student(batch)[:2].tolist()
            return found

    shares = [slice(0, 2), slice(2, 6)]
    sums = [losses_of(part) for part in shares]
    averaged = [torch.zeros_like(g) for g in want]
    weights = []
    for part in shares:
        student = Student(tiny_model(0), TEMPERATURE)
        losses = train_step(
            PlainEngine(student),
            make_micro_batches(rows[part], samples[part], total=6, tokens=1000, share_prompt=True),
            balancer=EmaBalancer(),
            ranks=2,
            keep_graph=True,
            reduce=lambda values: [sum(column) for column in zip(*sums, strict=True)],
        )
        weights.append(losses.weight)
        for total, parameter in zip(averaged, student.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad / 2
    assert weights[0] == weights[1]
    assert weights[0] == pytest.approx(whole.weight, rel=1e-5)
    for a, b in zip(want, averaged, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_an_empty_micro_batch_changes_nothing() -> None:
    rows, samples = rows_and_samples(4)
    whole, want = gradients(rows, samples, tokens=1000, keep_graph=True)
    padded, found = gradients(rows, samples, tokens=1000, keep_graph=False, extra=[empty_micro_batch(12)])
    assert padded.weight == pytest.approx(whole.weight, rel=1e-6)
    for a, b in zip(want, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_a_teacher_with_the_students_weights_and_prompt_gives_no_kl() -> None:
    rows, _ = rows_and_samples(4)
    model = tiny_model(0)
    responses = [np.array([7, 8, 9], dtype=np.int32)] * 4
    # float16 targets: the KL is 0 to their rounding.
    scored = score(model.eval(), [r.prompt for r in rows], responses, top_k=40, tokens=1000)
    samples = [
        Sample(Trajectory(SampleId(0, i), 0, responses[i], False, ""), ids, values)
        for i, (ids, values, _) in enumerate(scored)
    ]
    student = Student(model, TEMPERATURE)
    (batch,) = make_micro_batches(rows, samples, total=4, tokens=1000, share_prompt=True)
    assert 0 <= float(student(batch).detach()[1]) < 1e-6


def test_a_step_without_distillation_is_plain_cross_entropy() -> None:
    rows, _ = rows_and_samples(4)
    student = Student(tiny_model(0), TEMPERATURE)
    losses = train_step(
        PlainEngine(student),
        [*make_micro_batches(rows, None, total=4, tokens=1000, share_prompt=True), empty_micro_batch(None)],
        balancer=None,
        ranks=1,
        keep_graph=False,
        reduce=lambda values: values,
    )
    assert losses.kl is None
    assert losses.loss == losses.sft


def test_the_teachers_targets_are_its_own_top_log_probabilities_of_the_response() -> None:
    rows, samples = rows_and_samples(5, kept=7)
    teacher = tiny_model(1).eval()
    for row, sample in zip(rows, samples, strict=True):
        response = sample.trajectory.token_ids.tolist()
        with torch.no_grad():
            logits = teacher(torch.tensor([[*row.teacher_prompt, *response]])).logits[
                0, len(row.teacher_prompt) - 1 : -1
            ]
        top = torch.log_softmax(logits, -1).topk(7)
        assert sample.teacher_ids.dtype == np.int32
        assert sample.teacher_logprobs.dtype == np.float16
        assert sample.nbytes == 6 * 7 * len(response)
        assert np.array_equal(sample.teacher_ids, top.indices.numpy())
        assert np.allclose(sample.teacher_logprobs.astype(np.float32), top.values.numpy(), atol=5e-3)


def test_more_kept_tokens_than_the_vocabulary_keeps_all_of_it() -> None:
    rows, samples = rows_and_samples(2, kept=512)
    assert samples[0].teacher_ids.shape[-1] == 40
    assert rows[0].prompt


def test_student_mass_is_measured_for_each_kl_batch() -> None:
    rows, samples = rows_and_samples(4, kept=40)
    student = Student(tiny_model(0), TEMPERATURE)
    (batch,) = make_micro_batches(rows, samples, total=4, tokens=1000, share_prompt=True)
    student(batch)
    assert [mass for mass, _ in student.topk_mass] == [pytest.approx(1.0, abs=1e-5)]


def test_sharing_the_prompt_reads_it_once() -> None:
    rows, samples = rows_and_samples(4)
    (shared,) = make_micro_batches(rows, samples, total=4, tokens=1000, share_prompt=True)
    (apart,) = make_micro_batches(rows, samples, total=4, tokens=1000, share_prompt=False)
    assert shared.input_ids.shape[0] == 4
    assert apart.input_ids.shape[0] == 8
    assert (
        shared.tokens
        == apart.tokens
        == sum(len(r.answer) for r in rows) + sum(len(s.trajectory.token_ids) for s in samples)
    )


@pytest.mark.parametrize("tokens", [1, 10, 100])
def test_micro_batches_hold_every_row_once_within_their_tokens(tokens: int) -> None:
    lengths = [3, 9, 1, 4, 4, 7]
    groups = list(micro_batches(lengths, tokens))
    assert sorted(i for group in groups for i in group) == list(range(6))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= tokens


def test_dropout_hides_the_same_in_both_passes_of_a_step() -> None:
    """The losses that λ comes from are those whose gradients are taken."""
    rows, samples = rows_and_samples(5)
    taken: list[Tensor] = []

    class Watching(PlainEngine):
        def __call__(self, batch: MicroBatch) -> Tensor:
            losses = super().__call__(batch)
            taken.append(losses.detach())
            return losses

    model = tiny_model(0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    batches = make_micro_batches(rows, samples, total=5, tokens=30, share_prompt=True)
    assert len(batches) > 1
    train_step(
        Watching(Student(model, TEMPERATURE).train()),
        batches,
        balancer=EmaBalancer(),
        ranks=1,
        keep_graph=False,
        reduce=lambda values: values,
    )
    first, second = taken[: len(batches)], taken[len(batches) :]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_micro_batches_of_weight_0_do_not_count_in_the_students_mass() -> None:
    rows, samples = rows_and_samples(3)
    student = Student(tiny_model(0), TEMPERATURE)
    (batch,) = make_micro_batches(rows, samples, total=3, tokens=1000, share_prompt=True)
    student(batch)
    student(empty_micro_batch(12))
    assert len(student.topk_mass) == 1


def test_weights_of_tokens_average_over_tokens_then_rows() -> None:
    weights = token_weights(torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]))
    assert torch.allclose(weights, torch.tensor([[0.25, 0.25, 0], [0, 0, 0], [0.5, 0, 0]]))


@pytest.mark.parametrize("balancer", [None, FixedBalancer(1.0), EmaBalancer()])
def test_a_loss_that_is_no_number_makes_no_update(balancer: FixedBalancer | EmaBalancer | None) -> None:
    rows, samples = rows_and_samples(2)
    model = tiny_model(0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    engine = PlainEngine(Student(model, TEMPERATURE))
    batches = make_micro_batches(rows, samples if balancer else None, total=2, tokens=1000, share_prompt=True)
    with pytest.raises(ValueError, match="losses must be finite"):
        train_step(engine, batches, balancer=balancer, ranks=1, keep_graph=True, reduce=lambda values: values)
    assert engine.updates == 0
