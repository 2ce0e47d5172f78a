"""One optimizer step of RAFT: where the two losses, λ, micro-batches and ranks meet.

λ of step s needs the whole step's losses before the first gradient that it weighs. So the micro-batches are first
forwarded for their losses; after one all-reduce of two numbers every rank has the same λ; then the gradients of
`L_SFT + λ L_KL` are taken, λ a constant. `two_pass` forwards without a graph first and again with one (about a third
more work), from the same random state, so that dropout hides the same; `keep_graph` keeps all graphs, as is always done
with a single micro-batch. Without distillation there is no λ, and each micro-batch is forwarded once. Either way the
gradient is exactly that of the whole batch.

Knows nothing about Ray or data; the engine is DeepSpeed's, or anything with the same three calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raft_ray.distill.losses import EmaBalancer, FixedBalancer
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
    balancer: EmaBalancer | FixedBalancer | None,
    ranks: int,
    keep_graph: bool,
    reduce: Callable[[list[float]], list[float]],
    on_gradients: Callable[[], None] = lambda: None,
) -> StepLosses:
    """Take one optimizer step; equal numbers of micro-batches on every rank.

    Args:
        engine: `engine(batch)` gives `[2]`, the batch's weighted (SFT, KL); gradients are averaged over `ranks`.
        batches: this rank's micro-batches.
        balancer: gives λ; none for methods without distillation.
        keep_graph: keep the graphs of all micro-batches instead of forwarding twice.
        reduce: sums a list of numbers over ranks.
        on_gradients: called between the last backward pass and the optimizer's update.
    """
    kept: dict[int, Tensor] = {}
    random: list[list[Tensor]] = []
    sums = [0.0, 0.0]

    def count(losses: Tensor) -> None:
        for i, value in enumerate(losses.detach().tolist()):
            sums[i] += value

    if balancer is None:
        for batch in batches:
            losses = engine(batch)
            count(losses)
            # The engine averages over ranks; the losses are parts of a sum.
            engine.backward(losses[0] * ranks)
        sft, _ = _finite(reduce(sums))
        on_gradients()
        engine.step()
        return StepLosses(sft, sft, None, None)

    with torch.set_grad_enabled(keep_graph or len(batches) == 1):
        for index, batch in enumerate(batches):
            random.append(_random_state())
            losses = engine(batch)
            count(losses)
            if losses.requires_grad:
                kept[index] = losses
    sft, kl = _finite(reduce(sums))
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
    return StepLosses(sft + weight * kl, sft, kl, weight)


def _finite(losses: list[float]) -> list[float]:
    """The losses, before an update is made of them. Raises `ValueError`."""
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"losses must be finite, got sft={losses[0]}, kl={losses[1]}; lower learner.lr")
    return losses


def _random_state() -> list[Tensor]:
    """Of this process: the CPU's generator and, where there is one, the current GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for of_gpu in state[1:]:
        torch.cuda.set_rng_state(of_gpu)
