"""One optimizer step of RAFT: where the two losses, λ, micro-batches and ranks meet.

λ of step s needs the whole step's KL before the first KL gradient. Cross-entropy does not need λ, so its
micro-batches go first, forward and backward, and their losses are known. Then the KL micro-batches are forwarded
for their losses; after one all-reduce of two numbers every rank has the same λ; then their gradients are taken with
the constant λ. `recompute` forwards without a graph first and again with one (a third more work on the KL part),
`hold` keeps all graphs; a single micro-batch is always held. The gradient is exactly that of
`L_SFT + λ L_KL` over the whole batch.

Knows nothing about Ray or data; the engine is DeepSpeed's, or anything with the same three calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raft_ray.losses import EmaBalancer, FixedBalancer
from raft_ray.student import MicroBatch


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


def train_step(
    engine: TrainEngine,
    sft: Sequence[MicroBatch],
    kl: Sequence[MicroBatch],
    *,
    balancer: EmaBalancer | FixedBalancer,
    ranks: int,
    hold: bool,
    reduce: Callable[[list[float]], list[float]],
    on_gradients: Callable[[], None] = lambda: None,
) -> StepLosses:
    """Take one optimizer step; equal numbers of micro-batches on every rank.

    Args:
        engine: averages gradients over `ranks`.
        sft, kl: this rank's micro-batches; `kl` is empty for methods without distillation.
        balancer: gives λ.
        hold: keep the graphs of all KL micro-batches instead of forwarding twice.
        reduce: sums a list of numbers over ranks.
        on_gradients: called between the last backward pass and the optimizer's update.
    """
    sft_sum = 0.0
    for batch in sft:
        loss = engine(batch)
        # The engine averages over ranks; the losses are parts of a sum.
        engine.backward(loss * ranks)
        sft_sum += float(loss.detach())
    if not kl:
        (total_sft,) = reduce([sft_sum])
        on_gradients()
        engine.step()
        return StepLosses(total_sft, total_sft, None, None)

    held: list[Tensor] = []
    kl_sum = 0.0
    if hold or len(kl) == 1:
        held = [engine(batch) for batch in kl]
        kl_sum = sum(float(loss.detach()) for loss in held)
    else:
        with torch.no_grad():
            kl_sum = sum(float(engine(batch)) for batch in kl)
    total_sft, total_kl = reduce([sft_sum, kl_sum])
    weight = balancer.update(total_sft, total_kl)
    for index, batch in enumerate(kl):
        loss = held[index] if held else engine(batch)
        engine.backward(loss * (weight * ranks))
    on_gradients()
    engine.step()
    return StepLosses(total_sft + weight * total_kl, total_sft, total_kl, weight)
