"""Joins the evaluations of methods and seeds into one comparison: means, intervals, retention, tests, the front.

Reads blocks as `eval.json` has them (`docs/design.md`) and returns plain data: the content of `compare.json`. Every
score is a measurement of its own; what a method lacks is none, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from raft_ray.compare.front import dominated_by, pareto_front, pareto_point
from raft_ray.compare.tuning import Block, Tuned
from raft_ray.evaluate.ifeval import joined
from raft_ray.evaluate.statistics import estimate, estimate_of, on_base, paired

BASE = "base"

NUMBERS = {
    "drift": ("drift", "kl", "Drift (nats per token)"),
    "drift_first": ("drift", "kl_first", "Drift (first tokens)"),
    "agreement": ("drift", "top1_agreement", "Top-1 agreement"),
    "words": ("length", "words_mean", "Words (general)"),
    "weight_distance": ("weight_distance", "total", "Weight distance"),
}
"""Of each key of the comparison: part of a block, the number in it, and what it is called."""


def compare(tuned: Tuned, *, reference: str = "sft", main: str = "raft", seed: int = 0) -> dict[str, Any]:
    """The comparison of methods, each with its evaluation of every seed: `compare.json` of `docs/design.md`.

    Args:
        tuned: blocks by method; `base` (one block) is what retention is measured against.
        reference: the method that the others are tested against on the same questions.
        main: the method that the comparison is about.
    """
    methods = tuned.methods
    if not methods or not all(methods.values()):
        raise ValueError("a comparison needs methods, and each at least one evaluation")
    names = list(dict.fromkeys(score for blocks in methods.values() for score in _by_question(blocks[0])))
    results: dict[str, dict[str, Any]] = {
        name: {
            "seeds": len(blocks),
            "scores": {score: _score(score, name, methods, reference, seed) for score in names},
            **_numbers(blocks),
            "ifeval_kinds": _kinds(blocks),
        }
        for name, blocks in methods.items()
    }
    where = {name: point for name, result in results.items() if (point := pareto_point(result))}
    for name, result in results.items():
        result["dominated_by"] = dominated_by(name, where) if name in where else None
    return {
        "main": main,
        "reference": reference,
        "methods": results,
        "front": pareto_front(where),
        "chosen": tuned.chosen,
        "validation_questions": tuned.questions,
        "points": _points(tuned, names, seed),
    }


def _points(tuned: Tuned, scores: list[str], seed: int) -> list[dict[str, Any]]:
    """Every point of every method, the base's included, and which of them no other beats; none without a grid."""
    found = {
        f"{name}/{point}": {
            "method": name,
            "point": point,
            "seeds": len(blocks),
            "chosen": tuned.chosen.get(name, point) == point,
            "scores": {score: _mean(blocks, score, seed) for score in scores},
            **_numbers(blocks),
        }
        for name, points in tuned.points.items()
        for point, blocks in points.items()
    }
    front = pareto_front({name: point for name, one in found.items() if (point := pareto_point(one))})
    return [{**point, "front": name in front} for name, point in found.items()]


def _by_question(block: Block) -> dict[str, Sequence[float]]:
    """Right or wrong, or a score in [0, 1], on each question, by score; scores that were not taken are left out."""
    found: dict[str, Sequence[float]] = {
        part: block[part]["correct"] for part in ("domain", "ifeval") if block.get(part)
    }
    found |= {f"mmlu {shots}": result["correct"] for shots, result in (block.get("mmlu") or {}).items()}
    return found | ({"open": block["open"]["scores"]} if block.get("open") else {})


def _by_seed(blocks: Sequence[Block], score: str) -> list[Sequence[float]]:
    """`_by_question` of each seed; nothing where one of them has no such score."""
    found = [one[score] for one in map(_by_question, blocks) if score in one]
    return found if len(found) == len(blocks) else []


def _mean(blocks: Sequence[Block], score: str, seed: int) -> dict[str, Any] | None:
    """A score's mean and interval over all seeds; none where it was not taken."""
    found = _by_seed(blocks, score)
    return asdict(estimate(found, seed=seed)) if found else None


def _score(
    score: str, name: str, methods: Mapping[str, Sequence[Block]], reference: str, seed: int
) -> dict[str, Any] | None:
    result = _mean(methods[name], score, seed)
    if result is None:
        return None
    own = _by_seed(methods[name], score)
    base, rival = (_by_seed(methods.get(other, []), score) for other in (BASE, reference))
    # A base that scored 0 had nothing to retain; `base` tells it from one that was not measured.
    result["base"] = float(np.mean(base)) if base else None
    result |= on_base(own, base if name != BASE else [], seed=seed)
    tested = name != reference and rival
    return result | {"against": asdict(paired(own, rival, seed=seed)) if tested else None}


def _numbers(blocks: Sequence[Block]) -> dict[str, dict[str, Any] | None]:
    """The numbers that each seed has one of; none where one was not measured."""
    found = {}
    for key, (part, number, _) in NUMBERS.items():
        values = [block[part][number] for block in blocks if number in (block.get(part) or {})]
        found[key] = asdict(estimate_of(values)) if len(values) == len(blocks) else None
    return found


def _kinds(blocks: Sequence[Block]) -> dict[str, Any] | None:
    """What was followed by kind of instruction, of all seeds together; none where one was not counted."""
    found = [kinds for block in blocks if (kinds := (block.get("ifeval") or {}).get("kinds"))]
    return joined(found) if len(found) == len(blocks) else None
