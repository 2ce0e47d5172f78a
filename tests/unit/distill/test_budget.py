"""The drift budget: what is measured, and the λ that keeps it there."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from step_fixture import topk_kl

from raft_ray.distill.losses import BudgetBalancer, topk_kl_from_hidden


def test_the_drift_is_the_kl_at_temperature_1_and_measuring_it_changes_neither_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    head, ids = torch.randn(50, 8, requires_grad=True), torch.randint(0, 50, (70, 12))
    ids = torch.stack([torch.randperm(50)[:12] for _ in ids])
    hidden, teacher = torch.randn(70, 8, requires_grad=True), torch.randn(70, 12)
    weight, drift = torch.full((70,), 1 / 70), torch.zeros(())
    plain = topk_kl_from_hidden(hidden, head, ids, teacher, weight, 1.5)
    want = torch.autograd.grad(plain, (hidden, head))
    measured = topk_kl_from_hidden(hidden, head, ids, teacher, weight, 1.5, drift=drift)
    found = torch.autograd.grad(measured, (hidden, head))
    assert torch.equal(plain, measured)
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
    naive = topk_kl((hidden @ head.T)[None], ids[None], teacher[None], torch.ones(1, 70), 1.0)
    assert not drift.requires_grad
    assert float(drift) == pytest.approx(float(naive.detach()), abs=1e-6)


@pytest.mark.parametrize("budget", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("lag", [5, 15, 30])
def test_the_drift_of_a_simulated_student_settles_at_the_budget(budget: float, lag: int) -> None:
    random, balancer, drift, seen = np.random.default_rng(0), BudgetBalancer(budget), 0.0, []
    for _ in range(400):
        drift += (1 / (1 + balancer.weight) - drift) / lag
        balancer.update(drift * math.exp(0.2 * random.standard_normal() - 0.02))
        seen.append(drift / budget)
    assert 0.8 < min(seen[200:]) <= max(seen[200:]) < 1.2


def test_lambda_has_bounds_from_which_it_comes_back_and_goes_on_from_its_saved_state() -> None:
    balancer = BudgetBalancer(0.05, max_lambda=3.0)
    for _ in range(500):
        balancer.update(0.0)
    assert balancer.weight == 0.01
    for _ in range(500):
        balancer.update(1.0)
    assert balancer.weight == 3.0
    other = BudgetBalancer(0.05, max_lambda=3.0)
    other.load_state_dict(json.loads(json.dumps(balancer.state_dict())))
    for drift in (0.01, 0.2, 0.0):
        balancer.update(drift)
        other.update(drift)
        assert (balancer.weight, balancer.mean) == (other.weight, other.mean)
    with pytest.raises(ValueError, match="finite"):
        balancer.update(math.nan)
