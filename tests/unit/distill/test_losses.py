"""Losses against float64 definitions written here, values and gradients; the balance against the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_fixture import topk_kl
from torch import Tensor

from raft_ray.config import Loss
from raft_ray.distill.losses import EmaBalancer, FixedBalancer, sft_loss, token_weights, topk_kl_from_hidden


def defined_kl(logits: Tensor, ids: Tensor, values: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Eqs. 8-10 token by token, in float64."""
    rows = []
    for b in range(mask.shape[0]):
        tokens = []
        for t in range(mask.shape[1]):
            if not mask[b, t]:
                continue
            kept = [k for k in range(ids.shape[-1]) if values[b, t, k] != -math.inf]
            teacher = torch.stack([values[b, t, k] for k in kept]).double() / temperature
            student = torch.stack([logits[b, t, ids[b, t, k]] for k in kept]).double() / temperature
            q = teacher.exp() / teacher.exp().sum()
            p = student.exp() / student.exp().sum()
            tokens.append((q * (q / p).log()).sum())
        if tokens:
            rows.append(torch.stack(tokens).mean())
    return temperature**2 * torch.stack(rows).mean() if rows else torch.zeros((), dtype=torch.float64)


def problem(
    rows: int, length: int, vocabulary: int, kept: int, dim: int, padded: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [B, L, D], head [V, D], teacher ids and log-probabilities [B, L, K], mask [B, L]."""
    torch.manual_seed(seed)
    hidden = torch.randn(rows, length, dim)
    head = torch.randn(vocabulary, dim)
    top = torch.log_softmax(2 * torch.randn(rows, length, vocabulary), -1).topk(min(kept, vocabulary))
    ids, values = top.indices, top.values.clone()
    if 0 < padded < values.shape[-1]:
        values[..., -padded:] = -math.inf
    mask = torch.rand(rows, length) < 0.7
    mask[0] = False
    return hidden, head, ids, values, mask


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(4, 24),
    st.integers(1, 30),
    st.integers(0, 3),
    st.sampled_from([0.7, 1.0, 1.5, 4.0]),
    st.integers(0, 10**6),
)
def test_both_forms_of_the_kl_equal_its_definition_in_value_and_gradient(
    rows: int, length: int, vocabulary: int, kept: int, padded: int, temperature: float, seed: int
) -> None:
    hidden, head, ids, values, mask = problem(rows, length, vocabulary, kept, 5, padded, seed)

    h, w = hidden.double().requires_grad_(), head.double().requires_grad_()
    want = defined_kl(h @ w.T, ids, values, mask, temperature)
    want_h, want_w = (
        torch.autograd.grad(want, (h, w)) if want.requires_grad else (torch.zeros_like(h), torch.zeros_like(w))
    )

    h1, w1 = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    plain = topk_kl(h1 @ w1.T, ids, values, mask, temperature)
    plain.backward()
    h2, w2 = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    weights = token_weights(mask)
    fused = topk_kl_from_hidden(
        h2.flatten(0, 1), w2, ids.flatten(0, 1), values.flatten(0, 1), weights.flatten(), temperature, chunk_size=3
    )
    fused.backward()

    for value, grad_h, grad_w in ((plain, h1.grad, w1.grad), (fused, h2.grad, w2.grad)):
        assert torch.allclose(value.double(), want, rtol=1e-4, atol=1e-6)
        assert grad_h is not None
        assert torch.allclose(grad_h.double(), want_h, rtol=1e-3, atol=1e-5)
        assert grad_w is not None
        assert torch.allclose(grad_w.double(), want_w, rtol=1e-3, atol=1e-5)


def test_the_worked_example_of_the_method_comes_out() -> None:
    teacher = torch.tensor([0.5, 0.3, 0.1]).log().reshape(1, 1, 3)
    student = torch.full((1, 1, 5), -9.0)
    student[0, 0, :3] = torch.tensor([0.2, 0.2, 0.1]).log()
    q = torch.tensor([0.5556, 0.3333, 0.1111])
    p = torch.tensor([0.4, 0.4, 0.2])
    kl = topk_kl(student, torch.tensor([[[0, 1, 2]]]), teacher, torch.ones(1, 1), 1.0)
    assert float(kl) == pytest.approx(float((q * (q / p).log()).sum()), abs=1e-3)


def test_keeping_the_whole_vocabulary_gives_the_full_kl() -> None:
    hidden, head, _, _, mask = problem(3, 4, 9, 9, 5, 0, 1)
    logits = hidden @ head.T
    teacher = torch.randn(3, 4, 9)
    top = teacher.topk(9)
    full = torch.nn.functional.kl_div(
        torch.log_softmax(logits / 1.5, -1), torch.log_softmax(teacher / 1.5, -1), log_target=True, reduction="none"
    ).sum(-1)
    want = 1.5**2 * (token_weights(mask) * full).sum()
    assert float(topk_kl(logits, top.indices, top.values, mask, 1.5)) == pytest.approx(float(want), rel=1e-5)


def test_raw_logits_and_log_probabilities_are_the_same_target() -> None:
    hidden, head, ids, values, mask = problem(2, 5, 12, 6, 4, 0, 2)
    logits = hidden @ head.T
    shifted = values + 17.0
    assert float(topk_kl(logits, ids, values, mask, 1.5)) == pytest.approx(
        float(topk_kl(logits, ids, shifted, mask, 1.5)), rel=1e-4
    )


def test_a_student_that_equals_its_teacher_has_no_kl_and_no_gradient() -> None:
    hidden, head, _, _, mask = problem(2, 5, 12, 6, 4, 0, 3)
    hidden.requires_grad_()
    top = torch.log_softmax((hidden @ head.T).detach(), -1).topk(6)
    kl = topk_kl_from_hidden(
        hidden.flatten(0, 1),
        head,
        top.indices.flatten(0, 1),
        top.values.flatten(0, 1),
        token_weights(mask).flatten(),
        1.5,
    )
    kl.backward()
    assert abs(float(kl)) < 1e-6
    assert hidden.grad is not None
    assert float(hidden.grad.abs().max()) < 1e-6


def test_what_a_masked_position_holds_changes_nothing() -> None:
    hidden, head, ids, values, mask = problem(3, 4, 9, 4, 5, 0, 4)
    broken_values, broken_logits = values.clone(), (hidden @ head.T).clone()
    broken_values[~mask] = -math.inf
    broken_logits[~mask] = math.nan
    clean = topk_kl(hidden @ head.T, ids, values, mask, 1.5)
    assert float(topk_kl(broken_logits, ids, broken_values, mask, 1.5)) == pytest.approx(float(clean), rel=1e-6)
    fused = topk_kl_from_hidden(
        torch.where(mask.unsqueeze(-1), hidden, math.nan).flatten(0, 1),
        head,
        ids.flatten(0, 1),
        broken_values.flatten(0, 1),
        token_weights(mask).flatten(),
        1.5,
    )
    assert float(fused) == pytest.approx(float(clean), rel=1e-4)


def test_a_batch_without_any_position_has_loss_zero() -> None:
    hidden, head, ids, values, mask = problem(2, 3, 9, 4, 5, 0, 5)
    assert float(topk_kl(hidden @ head.T, ids, values, torch.zeros_like(mask), 1.5)) == 0.0


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    hidden, head, ids, values, mask = problem(4, 5, 12, 6, 4, 0, 6)
    rows = int(mask.any(-1).sum())

    def part(rows_of: slice) -> Tensor:
        return topk_kl_from_hidden(
            hidden[rows_of].flatten(0, 1),
            head,
            ids[rows_of].flatten(0, 1),
            values[rows_of].flatten(0, 1),
            token_weights(mask[rows_of], rows).flatten(),
            1.5,
        )

    whole = topk_kl(hidden @ head.T, ids, values, mask, 1.5)
    assert float(part(slice(0, 1)) + part(slice(1, 4))) == pytest.approx(float(whole), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(2, 20), st.integers(1, 9), st.integers(0, 10**6))
def test_the_sft_loss_equals_its_definition_in_value_and_gradient(
    rows: int, length: int, vocabulary: int, chunk_size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    hidden, head = torch.randn(rows, length, 5), torch.randn(vocabulary, 5)
    labels = torch.randint(0, vocabulary, (rows, length))
    mask = torch.rand(rows, length) < 0.6
    h, w = hidden.double().requires_grad_(), head.double().requires_grad_()
    logprobs = torch.log_softmax(h @ w.T, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    per_row = [-logprobs[b][mask[b]].mean() for b in range(rows) if mask[b].any()]
    want = torch.stack(per_row).mean() if per_row else (h * 0).sum() + (w * 0).sum()
    want_h, want_w = torch.autograd.grad(want, (h, w))

    h1, w1 = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = sft_loss(h1.flatten(0, 1), w1, labels.flatten(), token_weights(mask).flatten(), chunk_size)
    loss.backward()
    assert torch.allclose(loss.double(), want, rtol=1e-4, atol=1e-6)
    assert h1.grad is not None
    assert torch.allclose(h1.grad.double(), want_h, rtol=1e-3, atol=1e-5)
    assert w1.grad is not None
    assert torch.allclose(w1.grad.double(), want_w, rtol=1e-3, atol=1e-5)


class _Shapes(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest number of elements of any tensor made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def defined_weight(loss: Loss, logits: Tensor, label: int) -> Tensor:
    """What the token's cross-entropy is weighted with, in float64, by the papers."""
    if loss is Loss.ce:
        return torch.ones((), dtype=torch.float64)
    if loss is Loss.dft:
        return logits.softmax(-1)[label]
    likeliest = logits.sort(descending=True).values[:20].softmax(-1)
    return -(likeliest * likeliest.log()).sum() / math.log(20)


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("vocabulary", [7, 50])
@pytest.mark.parametrize("chunk_size", [3, 100])
def test_every_loss_equals_its_definition_in_value_and_gradient(loss: Loss, vocabulary: int, chunk_size: int) -> None:
    torch.manual_seed(vocabulary)
    hidden, head = torch.randn(3, 5, 4), torch.randn(vocabulary, 4)
    labels, mask = torch.randint(0, vocabulary, (3, 5)), torch.rand(3, 5) < 0.7
    mask[1] = False
    h1, w1 = (each.clone().requires_grad_() for each in (hidden, head))
    found = sft_loss(h1.flatten(0, 1), w1, labels.flatten(), token_weights(mask).flatten(), chunk_size, loss=loss)
    found.backward()

    h2, w2 = (each.double().requires_grad_() for each in (hidden, head))
    rows = []
    for b in range(3):
        tokens = []
        for t in range(5):
            if mask[b, t]:
                logits = w2 @ h2[b, t]
                tokens.append(
                    -defined_weight(loss, logits.detach(), labels[b, t]) * logits.log_softmax(-1)[labels[b, t]]
                )
        if tokens:
            rows.append(torch.stack(tokens).mean())
    expected = torch.stack(rows).mean()
    expected.backward()
    assert float(found) == pytest.approx(float(expected), abs=1e-6)
    assert h1.grad is not None
    assert w1.grad is not None
    torch.testing.assert_close(h1.grad.double(), h2.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(w1.grad.double(), w2.grad, atol=1e-6, rtol=1e-4)


def test_the_weighted_losses_in_closed_form() -> None:
    # Four tokens of probabilities 1/2, 1/4, 1/8, 1/8; the label has 1/4.
    head = torch.tensor([[0.5], [0.25], [0.125], [0.125]]).log()
    one, label = torch.ones(1, 1), torch.tensor([1])
    assert float(sft_loss(one, head, label, torch.ones(1), loss=Loss.dft)) == pytest.approx(math.log(4) / 4, abs=1e-6)
    entropy = 1.75 * math.log(2)
    expected = entropy / math.log(20) * math.log(4)
    assert float(sft_loss(one, head, label, torch.ones(1), loss=Loss.eaft)) == pytest.approx(expected, abs=1e-6)
    # Of tokens that are all alike, the twenty that count have the largest entropy: the weight is 1.
    even = sft_loss(one, torch.zeros(64, 1), label, torch.ones(1), loss=Loss.eaft)
    assert float(even) == pytest.approx(math.log(64), abs=1e-5)


@pytest.mark.parametrize("loss", list(Loss))
def test_parts_of_a_batch_add_up_to_the_whole_sft_loss(loss: Loss) -> None:
    torch.manual_seed(1)
    hidden, head, labels, weight = torch.randn(9, 4), torch.randn(30, 4), torch.randint(0, 30, (9,)), torch.rand(9)
    whole = sft_loss(hidden, head, labels, weight, loss=loss)
    parts = [sft_loss(hidden[s], head, labels[s], weight[s], loss=loss) for s in (slice(0, 2), slice(2, 9))]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-6)


def test_neither_loss_makes_a_tensor_of_positions_by_vocabulary() -> None:
    n, vocabulary, dim, kept = 300, 5000, 8, 16
    hidden, head = torch.randn(n, dim, requires_grad=True), torch.randn(vocabulary, dim, requires_grad=True)
    ids = torch.stack([torch.randperm(vocabulary)[:kept] for _ in range(n)])
    weight = torch.full((n,), 1 / n)
    with _Shapes() as shapes:
        topk_kl_from_hidden(hidden, head, ids, torch.randn(n, kept), weight, 1.5).backward()
        sft_loss(hidden, head, torch.randint(0, vocabulary, (n,)), weight, chunk_size=20).backward()
    assert shapes.largest < n * vocabulary / 4


def test_the_balance_follows_the_papers_equations() -> None:
    balancer = EmaBalancer(beta=0.9)
    losses = [(3.0, 0.5), (2.0, 0.4), (1.0, 0.7)]
    m_sft = m_kl = 0.0
    for s, (sft, kl) in enumerate(losses, start=1):
        m_sft, m_kl = 0.9 * m_sft + 0.1 * sft, 0.9 * m_kl + 0.1 * kl
        want = (m_sft / (1 - 0.9**s)) / (m_kl / (1 - 0.9**s) + 1e-8)
        assert balancer.update(sft, kl) == pytest.approx(want, rel=1e-12)
    assert EmaBalancer().update(2.0, 0.5) == pytest.approx(4.0)


def test_a_balancer_goes_on_from_its_saved_state() -> None:
    first, second = EmaBalancer(), EmaBalancer()
    first.update(3.0, 0.5)
    second.load_state_dict(first.state_dict())
    assert first.update(2.0, 0.3) == second.update(2.0, 0.3)


def test_lambda_is_capped_and_refuses_losses_that_are_not_finite() -> None:
    balancer = EmaBalancer(max_lambda=20)
    assert balancer.update(2.0, 1e-6) == 20
    with pytest.raises(ValueError, match="finite"):
        balancer.update(math.nan, 1.0)
    assert balancer.state_dict()["steps"] == 1


def test_a_fixed_lambda_ignores_the_losses() -> None:
    assert FixedBalancer(0.1).update(5.0, 3.0) == 0.1
