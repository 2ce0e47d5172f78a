"""Which point of the grid (`compare.grid`) stands for each method: the one that did best on validation questions.

Every method is tuned in the same way, so that none is handicapped by another's learning rate. The test questions are
split once, by a seed: on one part each method's point is chosen, on the other it is reported. What is measured on
other questions (drift, general scores) is reported as it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft_ray.errors import ConfigError

Block = dict[str, Any]
Grid = Mapping[str, Mapping[str, Sequence[Block]]]
"""By method and point, the evaluation of every seed."""

ONLY = ""
"""The point of a method that has no other."""


@dataclass(frozen=True)
class Tuned:
    """Each method at its point. With a grid, domain verdicts are those of the reported questions alone."""

    methods: dict[str, list[Block]]
    points: dict[str, dict[str, list[Block]]]
    """Every point that was evaluated, cut to the reported questions alike."""
    chosen: dict[str, str]
    """The point of each method that had several."""
    questions: int
    """How many test questions were given to the choice; 0 without a grid."""


def choose(grid: Grid, share: float, seed: int) -> dict[str, str]:
    """Each method's point: the one with the highest mean accuracy over seeds and validation questions, of equals the
    one that drifted least. A point that misses a seed that another has is not taken.

    Args:
        share: part of the test questions on which points are chosen.
        seed: of the split.

    Raises as `split` does.
    """
    if _single(grid):
        return {name: next(iter(points)) for name, points in grid.items()}
    validation, _ = split(_questions(grid), share, seed)
    return {name: _best(found, validation) for name, found in grid.items()}


def tune(grid: Grid, chosen: Mapping[str, str], share: float, seed: int) -> Tuned:
    """Every method at its chosen point, on the questions that `choose` did not see (all, without a grid).

    Args:
        grid: may hold more seeds than the points were chosen by.
        share, seed: as for `choose`.
    """
    if _single(grid):
        methods = {name: list(next(iter(points.values()))) for name, points in grid.items()}
        return Tuned(methods, {}, {}, 0)
    validation, reported = split(_questions(grid), share, seed)
    points = {
        name: {point: [_cut(block, reported) for block in blocks] for point, blocks in found.items()}
        for name, found in grid.items()
    }
    return Tuned(
        {name: points[name][chosen[name]] for name in grid},
        points,
        {name: point for name, point in chosen.items() if len(grid[name]) > 1},
        len(validation),
    )


def _single(grid: Grid) -> bool:
    return all(len(points) == 1 for points in grid.values())


def split(questions: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the questions for validation, and of those reported, in order.

    Raises `ConfigError` where either has none.
    """
    if not questions:
        raise ConfigError("compare.grid: points are chosen by domain accuracy, and there is no data.test")
    count = round(questions * share)
    if not 0 < count < questions:
        raise ConfigError(
            f"compare.validation={share:g}: leaves {count} of {questions} test questions to choose a point by and "
            f"{questions - count} to report; name more questions (data.test, eval.domain_rows) or another share"
        )
    drawn = set(random.Random(seed).sample(range(questions), count))
    return sorted(drawn), [place for place in range(questions) if place not in drawn]


def _questions(grid: Grid) -> int:
    counts = {
        len(block["domain"]["correct"]) if block.get("domain") else 0
        for points in grid.values()
        for blocks in points.values()
        for block in blocks
    }
    if len(counts) > 1:
        raise ValueError(f"evaluations over {sorted(counts)} test questions")
    return counts.pop()


def _best(points: Mapping[str, Sequence[Block]], validation: Sequence[int]) -> str:
    seeds = max(len(blocks) for blocks in points.values())
    whole = {point: blocks for point, blocks in points.items() if len(blocks) == seeds}

    def order(point: str) -> tuple[float, float]:
        blocks = whole[point]
        right = sum(block["domain"]["correct"][place] for block in blocks for place in validation)
        drift = sum(block["drift"]["kl"] for block in blocks if block.get("drift"))
        return -right, drift

    return min(whole, key=order)


def _cut(block: Block, reported: Sequence[int]) -> Block:
    """The block with the domain's verdicts on the reported questions."""
    correct = [block["domain"]["correct"][place] for place in reported]
    accuracy = sum(correct) / len(correct)
    return {**block, "domain": {**block["domain"], "correct": correct, "accuracy": accuracy, "n": len(correct)}}
