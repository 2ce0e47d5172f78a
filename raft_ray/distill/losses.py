"""The losses of RAFT's stage 2 and the balance between them (arXiv 2606.00147, Eqs. 5 and 8-12).

Knows nothing about models, batches or Ray: tensors in, scalars out.

Shapes: B rows, L positions, n positions of all rows in one list, K tokens kept by the teacher, V vocabulary,
D hidden size. A reduction is always "mean over a row's tokens, then mean over rows that have any" (Eq. 10);
`token_weights` turns a mask into the weights that do it, so that micro-batches and ranks can add up parts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raft_ray.config import Balance, DistillConfig, Loss
from raft_ray.models.head import Head

EAFT_TOP_K = 20
"""Of the student's tokens, how many EAFT's entropy is of."""


def token_weights(mask: Tensor, rows: int | None = None) -> Tensor:
    """Weights under which a plain sum over positions is the mean over tokens, then over rows.

    Args:
        mask: [B, L] bool or 0/1, the positions that count.
        rows: how many rows the mean is over; none takes the rows of `mask` that have any position. Ranks and
            micro-batches that each hold a part of a batch pass the whole batch's number.

    Returns:
        [B, L] float32; a row without positions has weight 0 throughout.
    """
    mask = mask.to(torch.float32)
    lengths = mask.sum(-1, keepdim=True)
    if rows is None:
        rows = int((lengths > 0).sum())
    return mask / lengths.clamp(min=1) / max(rows, 1)


def topk_kl_from_hidden(
    hidden: Tensor,
    head_weight: Tensor,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    token_weight: Tensor,
    temperature: float,
    chunk_size: int = 32,
    head: Head | None = None,
    drift: Tensor | None = None,
) -> Tensor:
    """Top-K temperature KL, Eqs. 8-10: `T² · mean_i mean_t KL(q̃ ‖ p̃)`, both renormalised on the teacher's set.

    From hidden states: only the K rows of the head that the teacher chose are multiplied, `chunk_size` positions at a
    time, which is all that the renormalised loss depends on. Memory above the inputs: [n, K] floats and
    `chunk_size · K · D`. `K ≥ V` gives the full-vocabulary KL.

    Args:
        hidden: [n, D] the student's last hidden states at the positions that predict response tokens.
        head_weight: [V, D] of the output head.
        teacher_ids: [n, K] integer.
        teacher_logprobs: [n, K] the teacher's log-probabilities at temperature 1, or its raw logits (the
            renormalisation cancels any shift). A padded slot holds `-inf`; its id may be anything in range.
        token_weight: [n] float, see `token_weights`; a position of weight 0 is ignored.
        temperature: T > 0.
        head: what `head_weight` belongs to, where logits have a bias, a scale or a soft cap.
        drift: [] float32, to which the same KL at T = 1 is added, without a gradient; none does not measure it.

    Returns a float32 scalar.
    """
    head = head or Head(head_weight)
    targets = (teacher_ids, teacher_logprobs, token_weight, temperature)
    return _TopKKL.apply(hidden, head_weight, head.bias, *targets, chunk_size, head, drift)


class _TopKKL(torch.autograd.Function):
    """Analytic gradient: `∂L/∂v_k = w · T · (p̃_k − q̃_k)` on the K columns and 0 elsewhere, times the head's slope."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        bias: Tensor | None,
        teacher_ids: Tensor,
        teacher_logprobs: Tensor,
        token_weight: Tensor,
        temperature: float,
        chunk_size: int,
        head: Head,
        drift: Tensor | None,
    ) -> Tensor:
        head = replace(head, weight=head_weight, bias=bias)
        n = hidden.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        slope = torch.empty(teacher_ids.shape, dtype=torch.float32, device=hidden.device)
        for start in range(0, n, chunk_size):
            part = slice(start, start + chunk_size)
            ids = teacher_ids[part].long()
            chosen = head.chosen(hidden[part], ids)
            keep = (token_weight[part] != 0).unsqueeze(-1)
            logits = torch.where(keep, chosen, 0.0)
            target = torch.where(keep, teacher_logprobs[part].float(), 0.0)
            kl, teacher, student = _renormalised_kl(logits, target, temperature)
            weight = token_weight[part].float()
            loss += temperature**2 * (weight * kl).sum()
            if drift is not None:
                drift += (weight * _renormalised_kl(logits, target, 1.0)[0]).sum()
            slope[part] = (student - teacher) * (weight * temperature).unsqueeze(-1) * head.slope(logits)
        ctx.save_for_backward(hidden, head_weight, teacher_ids, slope)
        ctx.bias = None if bias is None else bias.dtype
        ctx.chunk_size = chunk_size
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head_weight, teacher_ids, slope = ctx.saved_tensors
        (grad_loss,) = grad_outputs
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # float32, since thousands of positions add into the rows of frequent tokens.
        grad_head = (
            torch.zeros(head_weight.shape, dtype=torch.float32, device=head_weight.device)
            if ctx.needs_input_grad[1]
            else None
        )
        rows = head_weight.shape[0]
        grad_bias = torch.zeros(rows, dtype=torch.float32, device=head_weight.device) if ctx.bias else None
        for start in range(0, hidden.shape[0], ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            ids = teacher_ids[part].long()
            scaled = slope[part] * grad_loss
            if grad_hidden is not None:
                chosen = head_weight[ids]
                grad_hidden[part] = torch.bmm(scaled.unsqueeze(1).to(chosen.dtype), chosen).squeeze(1)
            if grad_head is not None:
                outer = scaled.unsqueeze(-1) * hidden[part].float().unsqueeze(1)
                grad_head.index_add_(0, ids.flatten(), outer.flatten(0, 1))
            if grad_bias is not None:
                grad_bias.index_add_(0, ids.flatten(), scaled.flatten())
        return (
            grad_hidden,
            None if grad_head is None else grad_head.to(head_weight.dtype),
            None if grad_bias is None else grad_bias.to(ctx.bias),
            *[None] * 7,
        )


def _renormalised_kl(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL(q̃ ‖ p̃) over the last axis, with q̃ and p̃; `student` and `teacher` are float32 logits [..., K]."""
    padded = teacher == -math.inf
    log_q = torch.log_softmax(teacher / temperature, -1)
    log_p = torch.log_softmax((student / temperature).masked_fill(padded, -math.inf), -1)
    q = log_q.exp()
    difference = (log_q - log_p).masked_fill(padded, 0.0)
    return (q * difference).sum(-1), q, log_p.exp()


def sft_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    token_weight: Tensor,
    chunk_size: int = 256,
    head: Head | None = None,
    loss: Loss = Loss.ce,
) -> Tensor:
    """Cross-entropy of the answer's tokens, Eq. 5, from hidden states, `chunk_size` positions at a time.

    Each chunk's [chunk_size, V] logits are made again in the backward pass instead of being kept.

    Args:
        hidden: [n, D] hidden states at the positions that predict answer tokens.
        head_weight: [V, D].
        labels: [n] integer, the answer's tokens.
        token_weight: [n] float, see `token_weights`.
        head: as in `topk_kl_from_hidden`.
        loss: what each token's cross-entropy is weighted with beside `token_weight`.

    Returns a float32 scalar.
    """
    head = head or Head(head_weight)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, hidden.shape[0], chunk_size):
        part = slice(start, start + chunk_size)
        total = total + checkpoint(
            _weighted_cross_entropy, hidden[part], head, labels[part], token_weight[part], loss, use_reentrant=False
        )
    return total


def _weighted_cross_entropy(hidden: Tensor, head: Head, labels: Tensor, token_weight: Tensor, loss: Loss) -> Tensor:
    logits = head.logits(hidden)
    losses = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
    if loss is Loss.dft:
        token_weight = token_weight * (-losses.detach()).exp()
    if loss is Loss.eaft:
        top = logits.detach().topk(min(EAFT_TOP_K, logits.shape[-1])).values.log_softmax(-1)
        token_weight = token_weight * -(top.exp() * top).sum(-1) / math.log(EAFT_TOP_K)
    return (losses * token_weight).sum()


class EmaBalancer:
    """λ of `L = L_SFT + λ L_KL` from the losses' bias-corrected moving averages, Eqs. 11-12.

    `m_k ← β m_k + (1-β) L_k`, `m̂_k = m_k / (1-β^s)`, `λ = m̂_SFT / (m̂_KL + ε)`.

    Feed it losses that are averaged over the whole step (all ranks, all micro-batches), so that λ is one number.

    Args:
        beta: β in [0, 1).
        eps: ε.
        max_lambda: cap on λ; a KL near 0 makes the ratio explode.
    """

    def __init__(self, beta: float = 0.9, eps: float = 1e-8, max_lambda: float | None = None) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: must be in [0, 1)")
        self.beta = beta
        self.eps = eps
        self.max_lambda = max_lambda
        self._steps = 0
        self._sft = 0.0
        self._kl = 0.0

    def update(self, sft: float, kl: float) -> float:
        """Take in the losses of step s = 1, 2, ... and return that step's λ, a constant for the gradient. Raises
        `ValueError` for a loss that is not finite, before it can poison the averages."""
        if not (math.isfinite(sft) and math.isfinite(kl)):
            raise ValueError(f"losses must be finite, got sft={sft}, kl={kl}")
        self._steps += 1
        self._sft = self.beta * self._sft + (1 - self.beta) * sft
        self._kl = self.beta * self._kl + (1 - self.beta) * kl
        correction = 1 - self.beta**self._steps
        value = (self._sft / correction) / (self._kl / correction + self.eps)
        return value if self.max_lambda is None else min(value, self.max_lambda)

    def state_dict(self) -> dict[str, float]:
        """The averages and the step, for checkpoints."""
        return {"steps": self._steps, "sft": self._sft, "kl": self._kl}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._steps, self._sft, self._kl = int(state["steps"]), state["sft"], state["kl"]


class FixedBalancer:
    """A constant λ: the ablation of `EmaBalancer`, with the same interface."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, sft: float, kl: float) -> float:
        """The constant, whatever the losses."""
        return self.value

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        del state


class BudgetBalancer:
    """λ of `L = L_SFT + λ (L_KL + w L_rehearsal)`, steered so that the drift stays at a budget.

    As the adaptive KL coefficient of PPO (arXiv 1909.08593, 2.2), λ grows while the drift's bias-corrected moving
    average m̂ is above the budget and shrinks while it is below. Since the drift answers tens of steps later, λ also
    follows the error's change, which brakes before the budget is reached:
    `e_s = min(m̂_s / budget - 1, 1)`, `log λ_{s+1} = log λ_s + 0.05 e_s + (e_s - e_{s-1})`, with `λ_1 = 1`, `e_0 = -1`.

    Feed it the drift of the whole step (all ranks, all micro-batches), so that λ is one number.

    Args:
        budget: nats per token, above 0.
        beta: β of the moving average, in [0, 1).
        max_lambda: cap on λ; none is 1000. The floor is 0.01, from which λ can come back.
    """

    def __init__(self, budget: float, beta: float = 0.9, max_lambda: float | None = None) -> None:
        self.budget = budget
        self.beta = beta
        self._most = 1000.0 if max_lambda is None else max_lambda
        self._steps = 0
        self._drift = 0.0
        self.weight = min(1.0, self._most)
        """λ of the next step, known before its losses."""

    @property
    def mean(self) -> float:
        """m̂, in nats per token; 0 before the first step."""
        return self._drift / (1 - self.beta**self._steps) if self._steps else 0.0

    def update(self, drift: float) -> None:
        """Take in the drift of a step, in nats per token. Raises `ValueError` for one that is not finite."""
        if not math.isfinite(drift):
            raise ValueError(f"the drift must be finite, got {drift}")
        before = self._error()
        self._steps += 1
        self._drift = self.beta * self._drift + (1 - self.beta) * drift
        error = self._error()
        self.weight = min(max(self.weight * math.exp(0.05 * error + error - before), 0.01), self._most)

    def _error(self) -> float:
        return min(self.mean / self.budget - 1, 1.0)

    def state_dict(self) -> dict[str, float]:
        """The average, the step and λ, for checkpoints."""
        return {"steps": self._steps, "drift": self._drift, "weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._steps, self._drift, self.weight = int(state["steps"]), state["drift"], state["weight"]


Balancer = EmaBalancer | FixedBalancer | BudgetBalancer


def make_balancer(config: DistillConfig) -> Balancer:
    """The balance of a run's losses (`distill.balance`)."""
    if config.balance is Balance.budget:
        return BudgetBalancer(config.drift_budget, config.ema_beta, config.max_lambda)
    if config.balance is Balance.ema:
        return EmaBalancer(config.ema_beta, max_lambda=config.max_lambda)
    return FixedBalancer(config.fixed_lambda)
