"""The student as the learner trains it: a causal model that turns a micro-batch straight into its loss.

The loss is computed inside `forward`, from hidden states, so that no [batch, tokens, vocabulary] tensor exists and
so that DeepSpeed's ZeRO-3 has the head gathered while it is needed. Knows nothing about Ray, DeepSpeed or ranks.

Shapes: B rows, L padded tokens, n predicting positions of all rows in one list, K kept by the teacher, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raft_ray.losses import sft_loss, topk_kl_from_hidden
from raft_ray.prompts import EncodedRow
from raft_ray.teacher import decoder_and_head, micro_batches, pad_right
from raft_ray.trajectory import Sample

_MASS_POSITIONS = 64


@dataclass
class MicroBatch:
    """Rows for one forward pass: of the cross-entropy (`labels`) or of the KL (`teacher_ids`, `teacher_logprobs`)."""

    input_ids: Tensor
    """[B, L] int64, padded on the right."""
    rows: Tensor
    """[n] row of each predicting position."""
    columns: Tensor
    """[n] its position in the row: the one before the predicted token."""
    weight: Tensor
    """[n] float32; over all micro-batches and ranks of a step they make means over tokens, then over rows."""
    labels: Tensor | None = None
    """[n] int64."""
    teacher_ids: Tensor | None = None
    """[n, K] int32."""
    teacher_logprobs: Tensor | None = None
    """[n, K] float16."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return MicroBatch(**moved)


class Student(nn.Module):
    """Wraps a transformers causal model: `forward(micro_batch)` is its weighted loss, a float32 scalar.

    Args:
        model: the causal model.
        temperature: T of the KL.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        decoder_and_head(model)
        self.student_mass: list[float] = []
        """For each KL micro-batch since the list was emptied, the mean probability of the teacher's top K under the
        student, over at most 64 positions (a vocabulary-wide softmax at every position would cost too much)."""

    def forward(self, batch: MicroBatch) -> Tensor:
        decoder, head = decoder_and_head(self.model)
        hidden_BLD = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        hidden = hidden_BLD[batch.rows, batch.columns]
        if batch.labels is not None:
            return sft_loss(hidden, head, batch.labels, batch.weight)
        assert batch.teacher_ids is not None
        assert batch.teacher_logprobs is not None
        with torch.no_grad():
            self.student_mass.append(_student_mass(hidden, head, batch.teacher_ids))
        return topk_kl_from_hidden(
            hidden, head, batch.teacher_ids, batch.teacher_logprobs, batch.weight, self.temperature
        )


def sft_batches(rows: Sequence[EncodedRow], total: int, tokens: int) -> list[MicroBatch]:
    """Micro-batches of the cross-entropy on `rows`' answers.

    Args:
        rows: this rank's rows.
        total: rows of the whole step, over all ranks.
        tokens: padded tokens a micro-batch.
    """
    batches = []
    for group in micro_batches([len(r.prompt) + len(r.answer) for r in rows], tokens):
        chosen = [rows[i] for i in group]
        batch = _positions([r.prompt for r in chosen], [r.answer for r in chosen], total)
        batch.labels = torch.cat([torch.as_tensor(r.answer, dtype=torch.long) for r in chosen])
        batches.append(batch)
    return batches


def kl_batches(rows: Sequence[EncodedRow], samples: Sequence[Sample], total: int, tokens: int) -> list[MicroBatch]:
    """Micro-batches of the KL on the students' responses; `samples` in the order of `rows`. See `sft_batches`."""
    responses = [s.trajectory.token_ids.tolist() for s in samples]
    batches = []
    for group in micro_batches([len(r.prompt) + len(z) for r, z in zip(rows, responses, strict=True)], tokens):
        batch = _positions([rows[i].prompt for i in group], [responses[i] for i in group], total)
        # A copy: the object store's memory is read-only.
        batch.teacher_ids = torch.cat([torch.from_numpy(samples[i].teacher_ids.copy()) for i in group])
        batch.teacher_logprobs = torch.cat([torch.from_numpy(samples[i].teacher_logprobs.copy()) for i in group])
        batches.append(batch)
    return batches


def empty_batch(like: str, top_k: int) -> MicroBatch:
    """A micro-batch of weight 0, for a rank that has fewer than the others: collectives need equal counts."""
    batch = _positions([[0]], [[0]], 1)
    batch.weight.zero_()
    if like == "sft":
        batch.labels = torch.zeros(1, dtype=torch.long)
    else:
        batch.teacher_ids = torch.arange(top_k, dtype=torch.int32).unsqueeze(0)
        batch.teacher_logprobs = torch.zeros(1, top_k, dtype=torch.float16)
    return batch


def _positions(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], total: int) -> MicroBatch:
    rows: list[int] = []
    columns: list[int] = []
    weight: list[float] = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        rows += [row] * len(response)
        columns += range(len(prompt) - 1, len(prompt) + len(response) - 1)
        weight += [1 / (len(response) * total)] * len(response)
    return MicroBatch(
        pad_right([[*p, *r] for p, r in zip(prompts, responses, strict=True)]),
        torch.tensor(rows),
        torch.tensor(columns),
        torch.tensor(weight, dtype=torch.float32),
    )


def _student_mass(hidden: Tensor, head: Tensor, teacher_ids: Tensor) -> float:
    step = -(-hidden.shape[0] // _MASS_POSITIONS)
    logits = (hidden[::step] @ head.T).float()
    chosen = logits.gather(-1, teacher_ids[::step].long())
    return float((chosen.logsumexp(-1) - logits.logsumexp(-1)).exp().mean())
