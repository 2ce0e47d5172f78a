"""What is measured on a row when the learners start: whether rows may share prompts, and what engines must agree to.

Both need the model as it is trained, so all ranks call them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raft_ray import models
from raft_ray.config import Config, Dtype
from raft_ray.distill.student import answer_logprobs, sharing_error
from raft_ray.distill.trajectory import Probe
from raft_ray.errors import ModelError
from raft_ray.models.prompts import EncodedRow

PROBE_TOKENS = 128
# By whether the model computes in half precision: what rounding does, and no more than a tenth of what an error does.
SHARING_ERROR = {False: 1e-3, True: 0.1}
"""Relative difference of hidden states (`raft_ray.distill.student.sharing_error`)."""
LOGPROB_ERROR = {False: 0.02, True: 0.3}
"""Mean absolute difference of log-probabilities between learner and rollout engine, nats per token."""


def may_share_prompts(
    engine: Any, config: Config, table: dict[int, EncodedRow], device: Any, mean: Callable[[float], float]
) -> tuple[bool, str | None]:
    """Whether rows may share their prompts, measured on the longest row that can come, and what the user must know.
    `engine`: of DeepSpeed, around a `Student`. `mean`: over all ranks, which must decide alike. Raises `ModelError`
    where `learner.share_prompt=true` cannot be had, or the measurement has spoilt the engine."""
    wanted = config.learner.share_prompt
    if wanted is False:
        return False, None
    row = max(_with_answer(table), key=lambda row: len(row.prompt) + len(row.answer))
    length = config.rollout.max_new_tokens
    response = (row.answer * (length // len(row.answer) + 1))[:length]
    with evaluating(engine):
        error = mean(sharing_error(engine, row, response, device))
    allowed = SHARING_ERROR[_is_half(config)]
    if error <= allowed:
        return True, None
    found = (
        f"{type(engine.module.model).__name__} computes other hidden states for a row of {len(row.prompt)} + "
        f"{len(row.answer)} + {len(response)} tokens that shares its prompt (relative difference {error:.2g}, rounding "
        f"makes at most {allowed:g})"
    )
    if wanted:
        raise ModelError(f"learner.share_prompt=true: {found}; leave learner.share_prompt out")
    if math.isinf(error) and config.learner.zero_stage == 3:
        # Its forward pass was left half-way, and ZeRO-3 holds parameters until its end.
        raise ModelError(f"learner.zero_stage=3: {found}; set learner.share_prompt=false")
    return False, f"prompts are not shared: {found}"


def make_probe(engine: Any, config: Config, folder: str, table: dict[int, EncodedRow], device: Any) -> Probe:
    """What rollout engines must find likely too, once they hold the weights that training starts from."""
    row = min(_with_answer(table), key=lambda row: abs(len(row.prompt) + len(row.answer) - PROBE_TOKENS))
    # The engine must have room for a token after it.
    room = models.model_context(folder, config.model) - len(row.prompt) - 1
    row = EncodedRow(row.row, row.prompt, row.answer[: min(PROBE_TOKENS, room)], [])
    with evaluating(engine):
        logprobs = answer_logprobs(engine, row, device)
    return Probe(row.prompt, row.answer, logprobs, LOGPROB_ERROR[_is_half(config)])


def _with_answer(table: dict[int, EncodedRow]) -> Iterator[EncodedRow]:
    return (row for row in table.values() if not row.rehearses)


@contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """During the block the engine does not train: no dropout."""
    engine.eval()
    yield
    engine.train()


def _is_half(config: Config) -> bool:
    return config.model.dtype is not Dtype.float32
