"""The loss of rehearsal rows, and the step that takes it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pytest
import torch
from step_fixture import TEMPERATURE, rows_and_samples, tiny_model, topk_kl
from torch import Tensor

from raft_ray.distill.losses import BudgetBalancer, EmaBalancer, FixedBalancer
from raft_ray.distill.order import SampleId
from raft_ray.distill.step import StepLosses, train_step
from raft_ray.distill.student import MicroBatch, Student, empty_micro_batch, make_micro_batches
from raft_ray.distill.teacher import score
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.prompts import EncodedRow

WEIGHT = 2.0
Balancer = EmaBalancer | FixedBalancer | BudgetBalancer | None


def prompts_and_samples(count: int, teacher_seed: int = 1) -> tuple[list[EncodedRow], list[Sample]]:
    """Rehearsal rows of different lengths: both models read the same prompt."""
    random = np.random.default_rng(5)
    rows, responses = [], []
    for i in range(count):
        prompt = random.integers(3, 40, 2 + i).tolist()
        rows.append(EncodedRow(100 + i, prompt, [], prompt))
        responses.append(random.integers(3, 40, 1 + (3 * i) % 7).astype(np.int32))
    scored = score(
        tiny_model(teacher_seed).eval(), [row.teacher_prompt for row in rows], responses, top_k=12, tokens=64
    )
    samples = [
        Sample(Trajectory(SampleId(0, row.row), 0, response, False, "rollout-0"), ids, values)
        for row, response, (ids, values, _) in zip(rows, responses, scored, strict=True)
    ]
    return rows, samples


class Engine:
    """The three calls of a DeepSpeed engine on plain torch."""

    def __init__(self) -> None:
        self.student = Student(tiny_model(0), TEMPERATURE)
        self.updates = 0

    def __call__(self, batch: MicroBatch) -> Tensor:
        losses: Tensor = self.student(batch)
        return losses

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.updates += 1

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.student.parameters() if p.grad is not None]


def stepped(
    balancer: Balancer,
    tokens: int = 1000,
    parts: Sequence[slice] = (slice(None),),
    *,
    share_prompt: bool = True,
    keep_graph: bool = True,
) -> tuple[StepLosses, list[Tensor]]:
    """A step of five rows and four prompts on as many ranks as there are `parts` of them, one after the other."""
    rows, samples = rows_and_samples(5)
    prompts, answered = prompts_and_samples(4)

    def batches(part: slice) -> tuple[list[MicroBatch], list[MicroBatch]]:
        own = make_micro_batches(
            rows[part], samples[part] if balancer else None, total=5, tokens=tokens, share_prompt=share_prompt
        )
        rehearsal = make_micro_batches(prompts[part], answered[part], total=4, tokens=tokens, share_prompt=share_prompt)
        return own, [*rehearsal, empty_micro_batch(12)]

    sums: list[list[float]] = []
    results = []
    for again in (False, True):  # First for the sums of all ranks, then with them.
        results = []
        for part in parts:
            engine = Engine()
            own, rehearsal = batches(part)

            def reduce(values: list[float], again: bool = again) -> list[float]:
                if not again:
                    sums.append(values)
                return [sum(column) for column in zip(*sums, strict=True)]

            losses = train_step(
                engine,
                own,
                balancer=FixedBalancer(1.0) if balancer and not again else deepcopy(balancer),
                rehearsal=rehearsal,
                rehearsal_weight=WEIGHT,
                ranks=len(parts),
                keep_graph=keep_graph,
                reduce=reduce,
            )
            assert engine.updates == 1
            results.append((losses, engine.gradients()))
    mean = [sum(each) / len(parts) for each in zip(*(gradients for _, gradients in results), strict=True)]
    return results[0][0], [torch.as_tensor(each) for each in mean]


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("balancer", [None, FixedBalancer(0.3)])
def test_the_step_is_sft_plus_lambda_kl_plus_w_times_the_kl_of_the_prompts(
    balancer: Balancer, share_prompt: bool
) -> None:
    losses, found = stepped(balancer, share_prompt=share_prompt)
    model = tiny_model(0)

    def kl(rows: Sequence[EncodedRow], samples: Sequence[Sample]) -> Tensor:
        terms = []
        for row, sample in zip(rows, samples, strict=True):
            response = sample.trajectory.token_ids.tolist()
            logits = model(torch.tensor([[*row.prompt, *response]])).logits[:, len(row.prompt) - 1 : -1]
            ids, values = (torch.from_numpy(each)[None] for each in (sample.teacher_ids, sample.teacher_logprobs))
            terms.append(topk_kl(logits, ids, values, torch.ones(1, len(response)), TEMPERATURE))
        return torch.stack(terms).mean()

    rows, samples = rows_and_samples(5)
    terms = []
    for row in rows:
        logits = model(torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
        terms.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer)))
    sft, own, rehearsal = torch.stack(terms).mean(), kl(rows, samples), kl(*prompts_and_samples(4))
    whole = sft + (0.3 * own if balancer else 0.0) + WEIGHT * rehearsal
    whole.backward()
    assert losses.sft == pytest.approx(float(sft.detach()), rel=1e-5)
    assert losses.rehearsal == pytest.approx(float(rehearsal.detach()), rel=1e-5)
    assert losses.loss == pytest.approx(float(whole.detach()), rel=1e-5)
    assert losses.kl == (pytest.approx(float(own.detach()), rel=1e-5) if balancer else None)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("distils", [True, False])
@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("parts", [[slice(None)], [slice(0, 2), slice(2, 5)]], ids=["one rank", "two ranks"])
def test_accumulation_and_ranks_give_the_single_batchs_losses_and_gradients(
    distils: bool, tokens: int, parts: list[slice]
) -> None:
    def balancer() -> Balancer:
        return FixedBalancer(0.7) if distils else None

    whole, want = stepped(balancer())
    cut, found = stepped(balancer(), tokens, parts, share_prompt=False, keep_graph=False)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    assert cut.rehearsal == pytest.approx(whole.rehearsal, rel=1e-5)
    for one, other in zip(want, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parts", [[slice(None)], [slice(0, 2), slice(2, 5)]], ids=["one rank", "two ranks"])
def test_under_a_budget_accumulation_and_ranks_give_the_single_batchs_drift_and_gradients(parts: list[slice]) -> None:
    balancer = BudgetBalancer(0.05)
    balancer.weight = 0.5
    whole, want = stepped(balancer)
    cut, found = stepped(balancer, 1, parts, share_prompt=False, keep_graph=False)
    assert whole.weight == cut.weight == 0.5
    assert whole.kl is not None
    assert whole.rehearsal is not None
    assert whole.loss == pytest.approx(whole.sft + 0.5 * (whole.kl + WEIGHT * whole.rehearsal), rel=1e-6)
    assert whole.drift
    assert cut.drift == pytest.approx(whole.drift, rel=1e-5)
    for one, other in zip(want, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("distils", [True, False])
def test_a_budget_takes_in_the_drift_of_a_step_that_forwards_every_micro_batch_once(distils: bool) -> None:
    rows, samples = rows_and_samples(4)
    prompts, answered = prompts_and_samples(4)
    engine, balancer, calls = Engine(), BudgetBalancer(1e-6), []
    engine.student.register_forward_hook(lambda *_: calls.append(1))
    own = make_micro_batches(rows, samples if distils else None, total=4, tokens=1, share_prompt=False)
    losses = train_step(
        engine,
        own,
        balancer=balancer,
        rehearsal=make_micro_batches(prompts, answered, total=4, tokens=1, share_prompt=False),
        rehearsal_weight=WEIGHT,
        ranks=1,
        keep_graph=False,
        reduce=lambda values: values,
    )
    assert len(calls) == 8
    assert losses.weight == 1.0 < balancer.weight
    assert balancer.mean == pytest.approx(losses.drift)
    assert (losses.kl is not None) is distils


def test_lambda_comes_from_the_rows_of_the_training_set_alone() -> None:
    with_prompts, _ = stepped(EmaBalancer())
    rows, samples = rows_and_samples(5)
    engine = Engine()
    batches = make_micro_batches(rows, samples, total=5, tokens=1000, share_prompt=True)
    alone = train_step(engine, batches, balancer=EmaBalancer(), ranks=1, keep_graph=True, reduce=lambda values: values)
    assert alone.rehearsal is None
    assert (with_prompts.sft, with_prompts.kl, with_prompts.weight) == (alone.sft, alone.kl, alone.weight)


def test_a_student_that_is_the_original_has_nothing_to_rehearse() -> None:
    prompts, answered = prompts_and_samples(4, teacher_seed=0)
    student = Student(tiny_model(0), TEMPERATURE)
    (batch,) = make_micro_batches(prompts, answered, total=4, tokens=1000, share_prompt=True)
    # float16 targets: 0 to their rounding.
    assert 0 <= float(student(batch).detach()[1]) < 1e-6
    assert not student.topk_mass
    assert batch.tokens == sum(len(sample.trajectory.token_ids) for sample in answered)


def test_replayed_answers_are_w_times_their_cross_entropy_also_under_accumulation() -> None:
    rows, _ = rows_and_samples(5)
    random = np.random.default_rng(6)
    replayed = [
        EncodedRow(100 + i, [5, 6, 7 + i], random.integers(3, 40, 1 + 2 * i).tolist(), [], replayed=True)
        for i in range(4)
    ]
    replayed.append(EncodedRow(104, [5, 6], [], [], replayed=True))  # cut before its first word
    assert all(row.rehearses for row in replayed)

    def taken(tokens: int) -> tuple[StepLosses, list[Tensor]]:
        engine = Engine()
        own, others = (
            make_micro_batches(each, None, total=5, tokens=tokens, share_prompt=False) for each in (rows, replayed)
        )
        losses = train_step(
            engine,
            own,
            balancer=None,
            rehearsal=[*others, empty_micro_batch(None)],
            rehearsal_weight=3.0,
            ranks=1,
            keep_graph=False,
            reduce=lambda values: values,
        )
        return losses, engine.gradients()

    whole, gradients = taken(1000)
    model = tiny_model(0)
    student = Engine()
    student.student.model = model

    def mean_loss(these: list[EncodedRow]) -> Tensor:
        found = []
        for row in these:
            if row.answer:
                logits = model(torch.tensor([row.prompt + row.answer])).logits[0, len(row.prompt) - 1 : -1]
                found.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer)))
        return torch.stack(found).sum() / 5

    sft, rehearsal = mean_loss(rows), mean_loss(replayed)
    (sft + 3.0 * rehearsal).backward()
    assert whole.sft == pytest.approx(float(sft), abs=1e-5)
    assert whole.rehearsal == pytest.approx(float(rehearsal), abs=1e-5)
    assert whole.loss == pytest.approx(float(sft + 3.0 * rehearsal), abs=1e-5)
    parts, others = taken(20)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
    for a, b, expected in zip(gradients, others, student.gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(a, expected, atol=1e-5, rtol=1e-3)


def test_a_loss_that_is_no_number_in_a_prompt_makes_no_update() -> None:
    prompts, answered = prompts_and_samples(2)
    answered[0].teacher_logprobs[0, 0] = np.nan
    engine = Engine()
    with pytest.raises(ValueError, match=r"must be finite, got sft=.*, rehearsal=nan, drift=nan; lower learner\.lr"):
        train_step(
            engine,
            make_micro_batches(rows_and_samples(2)[0], None, total=2, tokens=1000, share_prompt=True),
            balancer=None,
            rehearsal=make_micro_batches(prompts, answered, total=2, tokens=1000, share_prompt=True),
            rehearsal_weight=WEIGHT,
            ranks=1,
            keep_graph=True,
            reduce=lambda values: values,
        )
    assert engine.updates == 0
