"""Which evaluation of a training is its best, and whether another is worth waiting for. Pure arithmetic on lines of
`evaluations.jsonl`, of which that of step 0, the original model's, is no candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from raft_ray.config import EvalConfig

Line = dict[str, Any]


def best(lines: Iterable[Line], max_drift: float | None) -> Line | None:
    """The most accurate line within `max_drift` nats per token, the earliest of equals; where none is within it, the
    one with the least drift; none before the first step."""
    candidates = sorted((line for line in lines if line["step"] > 0), key=lambda line: line["step"])
    within = [line for line in candidates if max_drift is None or line["drift"] <= max_drift]
    if within:
        return max(within, key=lambda line: line["accuracy"])
    return min(candidates, key=lambda line: line["drift"], default=None)


def stops(lines: Sequence[Line], asked: EvalConfig) -> bool:
    """Whether `eval.patience` evaluations have come after the best one."""
    chosen = best(lines, asked.max_drift)
    if asked.patience is None or chosen is None:
        return False
    return sum(line["step"] > chosen["step"] for line in lines) >= asked.patience


def reason(chosen: Line, max_drift: float | None) -> str:
    """Why the weights of this step are taken, in words."""
    said = f"validation accuracy {chosen['accuracy']:.1%}, drift {chosen['drift']:.3g} nats per token"
    if max_drift is None:
        return f"the most accurate: {said}"
    if chosen["drift"] <= max_drift:
        return f"the most accurate within eval.max_drift={max_drift:g}: {said}"
    return f"the least drift, since no evaluation lies within eval.max_drift={max_drift:g}: {said}"


def kept_steps(lines: Iterable[Line], asked: EvalConfig, checkpoints: Iterable[int]) -> set[int]:
    """Steps whose weights a run that goes on from any of these `checkpoints` may have to take for its best."""
    found = [best([line for line in lines if line["step"] <= step], asked.max_drift) for step in checkpoints]
    return {line["step"] for line in found if line is not None}
