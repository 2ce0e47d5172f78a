"""The student as the learner trains it: a causal model that turns a micro-batch straight into its two losses.

```
shared (learner.share_prompt):   prompt | answer ŷ | response z      one sequence a row: z does not see ŷ, and its
                                 0 .. P-1 | P ..    | P ..           positions go on from the prompt's end
apart:                           prompt | answer ŷ                   two sequences per row, plain causal attention
                                 prompt | response z
```

A rehearsal row is prompt and response, or prompt and replayed answer, in either layout. Micro-batches hold rows of one
kind.

Both layouts give the same losses where all that a layer knows of a sequence is who sees whom and at which position;
`sharing_error` measures on a row whether that is so. Sharing saves the prompt's second pass. The losses are
computed inside `forward`, from hidden states, so that no [batch, tokens, vocabulary] tensor exists and so that
DeepSpeed's ZeRO-3 has the head gathered while it is needed. Knows nothing about Ray, DeepSpeed or ranks.

Shapes: B sequences, L padded tokens, n predicting positions of all rows in one list, K kept by the teacher, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raft_ray.config import Loss
from raft_ray.distill.losses import sft_loss, topk_kl_from_hidden
from raft_ray.distill.teacher import Target, TeacherBatch, targets
from raft_ray.distill.trajectory import Sample
from raft_ray.models.adapters import adapter_off
from raft_ray.models.head import Head, decoder_of
from raft_ray.models.padding import micro_batches, pad_right
from raft_ray.models.prompts import EncodedRow

_MASS_POSITIONS = 64


@dataclass
class Positions:
    """Where a loss is taken: `n` positions, each the one before the token that it predicts."""

    sequences: Tensor
    """[n] int64, which sequence of the micro-batch."""
    columns: Tensor
    """[n] int64, its position there."""
    weight: Tensor
    """[n] float32; over all micro-batches and ranks of a step they make means over tokens, then over rows."""

    @classmethod
    def of(cls, spots: Sequence[tuple[int, Sequence[int]]], total: int) -> Positions:
        """Of rows, a `(sequence, columns)` each: a position weighs 1 / (tokens of the row · rows of the step)."""
        return cls(
            torch.tensor([sequence for sequence, columns in spots for _ in columns], dtype=torch.long),
            torch.tensor([column for _, columns in spots for column in columns], dtype=torch.long),
            torch.tensor([1 / (len(columns) * total) for _, columns in spots for _ in columns], dtype=torch.float32),
        )

    def to(self, device: torch.device) -> Positions:
        return Positions(self.sequences.to(device), self.columns.to(device), self.weight.to(device))


@dataclass
class MicroBatch:
    """Some rows of a step for one forward pass: the cross-entropy of their answers, the KL of their responses."""

    input_ids: Tensor
    """[B, L] int64, padded on the right."""
    answers: Positions
    """Of the cross-entropy; n = tokens of the answers, 0 for rehearsal rows that are sampled."""
    labels: Tensor
    """[n] int64."""
    position_ids: Tensor | None = None
    """[B, L] int64, for sequences that share their prompt; else 0, 1, 2, ..."""
    attention: Tensor | None = None
    """[B, 1, L, L] bool, who sees whom; else plain causal attention."""
    responses: Positions | None = None
    """Of the KL; n = tokens of the responses."""
    teacher_ids: Tensor | None = None
    """[n, K] int32."""
    teacher_logprobs: Tensor | None = None
    """[n, K] float16."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(**{k: None if v is None else v.to(device) for k, v in vars(self).items()})  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        """Positions that carry a loss."""
        parts = [self.answers] + ([] if self.responses is None else [self.responses])
        return sum(int((part.weight > 0).sum()) for part in parts)


class Reading(NamedTuple):
    """What a student makes of a micro-batch, for the proofs at a run's start."""

    hidden: Tensor
    """[n, D] float32 of all predicting positions, those of the answers first."""
    logprobs: Tensor
    """[answer tokens] float32, of the labels at temperature 1."""


class Student(nn.Module):
    """Wraps a transformers causal model: `forward(micro_batch)` is `[3]`, float32: its weighted SFT, KL and drift.

    The drift is the KL of rehearsal rows at T = 1, without a gradient, and 0 for other rows. A student with an adapter
    also makes the targets of its frozen base: `forward(teacher_batch)`, in evaluation mode.

    Args:
        model: the causal model.
        temperature: T of the KL.
        loss: of the answers' tokens.
    """

    def __init__(self, model: Any, temperature: float, loss: Loss = Loss.ce) -> None:
        super().__init__()
        self.loss = loss
        self.model = model
        self.temperature = temperature
        self.topk_mass: list[tuple[float, int]] = []
        """For each micro-batch with answers and a KL since the list was emptied, the mean probability of the teacher's
        top K under the student, over at most 64 of its responses' tokens (a vocabulary-wide softmax at every one would
        cost too much), and how many tokens they have."""

    def forward(self, batch: MicroBatch | TeacherBatch, read: bool = False) -> Tensor | Reading | list[Target]:
        """The weighted losses; or, to `read`, what they are taken from; or the base's targets."""
        if isinstance(batch, TeacherBatch):
            with torch.no_grad(), adapter_off(self.model):
                return targets(self.model, batch)
        head = Head.of(self.model)
        hidden_BLD = self._hidden(batch)
        if read:
            return _reading(hidden_BLD, batch, head)
        at = batch.answers
        hidden = hidden_BLD[at.sequences, at.columns]
        sft = sft_loss(hidden, head.weight, batch.labels, at.weight, head=head, loss=self.loss)
        if batch.responses is None:
            return torch.stack([sft, *torch.zeros(2, device=sft.device)])
        assert batch.teacher_ids is not None
        assert batch.teacher_logprobs is not None
        at = batch.responses
        hidden = hidden_BLD[at.sequences, at.columns]
        # One of weight 0 is there for the collectives alone.
        if len(batch.labels) and at.weight.any():
            with torch.no_grad():
                self.topk_mass.append((_topk_mass(hidden, head, batch.teacher_ids), len(hidden)))
        drift = torch.zeros((), device=hidden.device)
        kl = topk_kl_from_hidden(
            hidden,
            head.weight,
            batch.teacher_ids,
            batch.teacher_logprobs,
            at.weight,
            self.temperature,
            head=head,
            drift=None if len(batch.labels) else drift,
        )
        return torch.stack([sft, kl, drift])

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """[B, L, D]."""
        mask = batch.attention
        if mask is not None and self.model.config._attn_implementation == "eager":
            # A model's own attention adds its mask, and would take a bool for 0 and 1.
            lowest = torch.finfo(self.model.dtype).min
            mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill_(~mask, lowest)
        hidden: Tensor = decoder_of(self.model)(
            input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        return hidden


@torch.no_grad()
def sharing_error(forward: Callable[..., Any], row: EncodedRow, response: Sequence[int], device: torch.device) -> float:
    """How far a row's hidden states in the shared layout are from those apart: the largest relative difference of a
    predicting position. It is rounding, or shows what the model knows of a sequence beside mask and positions (a
    window, a bias by distance, a state). Infinite for a model that takes no mask of its rows' own.

    Args:
        forward: a `Student`, or the engine around one, in evaluation mode; called twice.
    """
    apart = forward(_pack([row], [list(response)], 1).to(device), read=True).hidden
    try:
        shared = forward(_pack([row], [list(response)], 1, shared=True).to(device), read=True).hidden
    # The model's own code, which may do anything with a mask that it does not expect.
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return math.inf
    return float(((shared - apart).norm(dim=-1) / apart.norm(dim=-1).clamp(min=1e-6)).max())


@torch.no_grad()
def answer_logprobs(forward: Callable[..., Any], row: EncodedRow, device: torch.device) -> list[float]:
    """The log-probability of each token of a row's answer, in nats; `forward` as for `sharing_error`, called once."""
    found: list[float] = forward(_pack([row], None, 1).to(device), read=True).logprobs.tolist()
    return found


@torch.no_grad()
def answer_hidden(
    forward: Callable[..., Any], rows: Sequence[EncodedRow], device: torch.device, *, tokens: int
) -> Tensor:
    """[n, D] float32, the hidden states that predict each token of the rows' answers, in the rows' order.

    Args:
        forward: as for `sharing_error`; called as often for the same rows, so that ranks may call it together.
        tokens: padded tokens per forward pass.
    """
    found: dict[int, Tensor] = {}
    for group in micro_batches([len(row.prompt) + len(row.answer) for row in rows], tokens):
        hidden = forward(_pack([rows[i] for i in group], None, 1).to(device), read=True).hidden
        found |= zip(group, hidden.split([len(rows[i].answer) for i in group]), strict=True)
    return torch.cat([found[i] for i in range(len(rows))])


def make_micro_batches(
    rows: Sequence[EncodedRow], samples: Sequence[Sample] | None, *, total: int, tokens: int, share_prompt: bool
) -> list[MicroBatch]:
    """Cut a rank's rows of one kind into micro-batches.

    Args:
        rows: this rank's rows, with answers or of rehearsal.
        samples: their trajectories and targets, in the same order; none for methods without distillation.
        total: rows of this kind in the whole step, over all ranks.
        tokens: padded tokens per micro-batch (a longer row stands alone).
        share_prompt: the layout, see above.
    """
    responses = [s.trajectory.token_ids.tolist() for s in samples] if samples is not None else None
    lengths = []
    for i, row in enumerate(rows):
        answer, response = len(row.answer), len(responses[i]) if responses else 0
        together = len(row.prompt) + answer + response
        apart = 2 * (len(row.prompt) + max(answer, response))
        lengths.append(together if share_prompt or not responses or row.rehearses else apart)
    batches = []
    for group in micro_batches(lengths, tokens):
        replies = None if responses is None else [responses[i] for i in group]
        shared = share_prompt and replies is not None and not rows[group[0]].rehearses
        batch = _pack([rows[i] for i in group], replies, total, shared=shared)
        if samples is not None:
            # A copy: the object store's memory is read-only.
            batch.teacher_ids = torch.cat([torch.from_numpy(samples[i].teacher_ids.copy()) for i in group])
            batch.teacher_logprobs = torch.cat([torch.from_numpy(samples[i].teacher_logprobs.copy()) for i in group])
        batches.append(batch)
    return batches


def empty_micro_batch(top_k: int | None) -> MicroBatch:
    """One of weight 0, for a rank that has fewer than the others: collectives need equal counts.

    Args:
        top_k: K of the KL; none for methods without distillation.
    """
    at = Positions(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(1))
    batch = MicroBatch(torch.zeros(1, 1, dtype=torch.long), at, labels=torch.zeros(1, dtype=torch.long))
    if top_k is not None:
        batch.responses = at
        batch.teacher_ids = torch.arange(top_k, dtype=torch.int32).unsqueeze(0)
        batch.teacher_logprobs = torch.zeros(1, top_k, dtype=torch.float16)
    return batch


def _pack(
    rows: Sequence[EncodedRow], responses: Sequence[list[int]] | None, total: int, *, shared: bool = False
) -> MicroBatch:
    """The rows in either layout. Nothing is predicted from a last token, so it is left out; the prompt's end predicts
    the first token of answer and response."""
    answers: list[tuple[int, Sequence[int]]] = []
    replies: list[tuple[int, Sequence[int]]] = []
    sequences = [[*row.prompt, *row.answer[:-1]] for row in rows if row.answer or responses is None]
    for b, row in enumerate(rows):
        end = len(row.prompt) - 1
        answers.append((b, range(end, end + len(row.answer))))
        if responses is None:
            continue
        response = responses[b]
        if shared:
            second = len(sequences[b])
            replies.append((b, [end, *range(second, second + len(response) - 1)]))
            sequences[b] += response[:-1]
        else:
            replies.append((len(sequences), range(end, end + len(response))))
            sequences.append([*row.prompt, *response[:-1]])
    labels = torch.cat([torch.as_tensor(row.answer, dtype=torch.long) for row in rows])
    batch = MicroBatch(pad_right(sequences), Positions.of(answers, total), labels)
    if responses is not None:
        batch.responses = Positions.of(replies, total)
    if shared:
        count, length = batch.input_ids.shape
        batch.position_ids = torch.arange(length).repeat(count, 1)
        batch.attention = torch.ones(length, length, dtype=torch.bool).tril().repeat(count, 1, 1, 1)
        for b, row in enumerate(rows):
            prompt, second = len(row.prompt), len(row.prompt) + len(row.answer) - 1
            batch.position_ids[b, second:] -= second - prompt
            batch.attention[b, 0, second:, prompt:second] = False
    return batch


def _reading(hidden_BLD: Tensor, batch: MicroBatch, head: Head) -> Reading:
    parts = [at for at in (batch.answers, batch.responses) if at is not None]
    answers, *others = (hidden_BLD[at.sequences, at.columns] for at in parts)
    logprobs = [
        head.logits(hidden).log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        for hidden, labels in zip(answers.split(_MASS_POSITIONS), batch.labels.split(_MASS_POSITIONS), strict=True)
    ]
    return Reading(torch.cat([answers, *others]).float(), torch.cat(logprobs))


def _topk_mass(hidden: Tensor, head: Head, teacher_ids: Tensor) -> float:
    step = -(-hidden.shape[0] // _MASS_POSITIONS)
    logits = head.logits(hidden[::step])
    chosen = logits.gather(-1, teacher_ids[::step].long())
    return float((chosen.logsumexp(-1) - logits.logsumexp(-1)).exp().mean())
