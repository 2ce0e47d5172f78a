"""One optimizer step of RAFT: where the losses, λ, micro-batches and ranks meet.

λ of step s needs the whole step's losses before the first gradient that it weighs. So the micro-batches are first
forwarded for their losses; after one all-reduce of two numbers every rank has the same λ; then the gradients of
`L_SFT + λ L_KL` are taken, λ a constant. `two_pass` forwards without a graph first and again with one (about a third
more work), from the same random state, so that dropout hides the same; `keep_graph` keeps all graphs, as is always done
with a single micro-batch. Without distillation there is no λ, and each micro-batch is forwarded once, as are those of
rehearsal rows, whose weight is known: `L = L_SFT + λ L_KL + w L_rehearsal`. Under a drift budget λ follows from the
steps before, so all are forwarded once: `L = L_SFT + λ (L_KL + w L_rehearsal)`. Either way the gradient is exactly that
of the whole batch.

Knows nothing about Ray or data; the engine is DeepSpeed's, or anything with the same three calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from raft_ray.distill.losses import Balancer, BudgetBalancer
from raft_ray.distill.student import MicroBatch


class TrainEngine(Protocol):
    """The part of a DeepSpeed engine that a step uses."""

    def __call__(self, batch: MicroBatch) -> Tensor: ...

    def backward(self, loss: Tensor) -> object: ...

    def step(self) -> object: ...


@dataclass(frozen=True)
class StepLosses:
    """A step's global losses, the same on every rank."""

    loss: float
    sft: float
    kl: float | None
    weight: float | None
    """λ."""
    rehearsal: float | None = None
    """The KL of the rehearsal rows, or their cross-entropy, not weighted; none in a step without any."""
    drift: float | None = None
    """The rehearsal rows' KL at T = 1, in nats per token; 0 of replayed ones."""

    @property
    def ce_kl_ratio(self) -> float | None:
        """Cross-entropy over weighted KL (the paper's Fig. 2a): near 1 where λ balances them."""
        if self.kl is None or self.weight is None or self.kl * self.weight == 0:
            return None
        return self.sft / (self.weight * self.kl)


def train_step(
    engine: TrainEngine,
    batches: Sequence[MicroBatch],
    *,
    balancer: Balancer | None,
    rehearsal: Sequence[MicroBatch] = (),
    rehearsal_weight: float = 0.0,
    ranks: int,
    keep_graph: bool,
    reduce: Callable[[list[float]], list[float]],
    on_gradients: Callable[[], None] = lambda: None,
) -> StepLosses:
    """Take one optimizer step; equal numbers of micro-batches on every rank.

    Args:
        engine: `engine(batch)` gives `[3]`, the batch's weighted (SFT, KL, drift); gradients are averaged over `ranks`.
        batches: this rank's micro-batches of rows with answers.
        balancer: gives λ, from the losses of these rows alone; a drift budget gives it to every method, from the drift
            of the steps before, and takes in this step's; else none for methods without distillation.
        rehearsal: this rank's micro-batches of rehearsal rows.
        rehearsal_weight: w.
        keep_graph: keep the graphs of all micro-batches instead of forwarding twice.
        reduce: sums a list of numbers over ranks.
        on_gradients: called between the last backward pass and the optimizer's update.
    """
    kept: dict[int, Tensor] = {}
    random: list[list[Tensor]] = []
    sums = [0.0, 0.0]

    def count(losses: Tensor) -> None:
        for i, value in enumerate(losses.detach()[:2].tolist()):
            sums[i] += value

    budget = balancer if isinstance(balancer, BudgetBalancer) else None
    weight = 1.0 if budget is None else budget.weight
    rehearsal_weight *= weight
    rehearsed = drift = 0.0
    for batch in rehearsal:
        losses = engine(batch)
        # One of the two is 0: such rows are sampled for the KL, or replayed for the cross-entropy.
        loss = losses[:2].sum()
        rehearsed += float(loss.detach())
        drift += float(losses[2].detach())
        # The engine averages over ranks; the losses are parts of a sum.
        engine.backward(rehearsal_weight * loss * ranks)

    def reduced() -> list[float]:
        return _finite(reduce([*sums, rehearsed, drift] if rehearsal else sums))

    if balancer is None or isinstance(balancer, BudgetBalancer):
        distils = any(batch.responses is not None for batch in batches)
        for batch in batches:
            losses = engine(batch)
            count(losses)
            engine.backward((losses[0] + weight * losses[1] if distils else losses[0]) * ranks)
        sft, kl, *rest = reduced()
        if budget and rest:
            budget.update(rest[1])
        on_gradients()
        engine.step()
        known = weight if budget else None
        found = StepLosses(sft + weight * kl, sft, kl, known) if distils else StepLosses(sft, sft, None, known)
        return _with_rehearsal(found, rest, rehearsal_weight)

    with torch.set_grad_enabled(keep_graph or len(batches) == 1):
        for index, batch in enumerate(batches):
            random.append(_random_state())
            losses = engine(batch)
            count(losses)
            if losses.requires_grad:
                kept[index] = losses
    sft, kl, *rest = reduced()
    weight = balancer.update(sft, kl)
    for index, batch in enumerate(batches):
        if index in kept:
            losses = kept.pop(index)
        else:
            _set_random_state(random[index])
            losses = engine(batch)
        engine.backward((losses[0] + weight * losses[1]) * ranks)
    on_gradients()
    engine.step()
    return _with_rehearsal(StepLosses(sft + weight * kl, sft, kl, weight), rest, rehearsal_weight)


def _with_rehearsal(losses: StepLosses, rehearsal: list[float], weight: float) -> StepLosses:
    """The step's losses with KL and drift of its rehearsal rows, if it has any."""
    if not rehearsal:
        return losses
    kl, drift = rehearsal
    return replace(losses, loss=losses.loss + weight * kl, rehearsal=kl, drift=drift)


def _finite(losses: list[float]) -> list[float]:
    """The losses, before an update is made of them. Raises `ValueError`."""
    if not all(map(math.isfinite, losses)):
        names = ("sft", "kl", "rehearsal", "drift")
        found = ", ".join(f"{name}={loss}" for name, loss in zip(names, losses, strict=False))
        raise ValueError(f"losses must be finite, got {found}; lower learner.lr")
    return losses


def _random_state() -> list[Tensor]:
    """Of this process: the CPU's generator and, where there is one, the current GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for of_gpu in state[1:]:
        torch.cuda.set_rng_state(of_gpu)
