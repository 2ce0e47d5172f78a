"""Joins the evaluations of methods and seeds into one comparison: means, intervals, retention, tests, the front.

Reads blocks as `eval.json` has them (`docs/design.md`) and returns plain data: the content of `compare.json`. Every
score is a measurement of its own; what a method lacks is none, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raft_ray.compare.front import Place, dominated_by, pareto_front
from raft_ray.compare.tuning import Tuned
from raft_ray.evaluate.statistics import estimate, estimate_of, paired

Block = dict[str, Any]
BASE = "base"


def compare(tuned: Tuned, *, reference: str = "sft", main: str = "raft", seed: int = 0) -> dict[str, Any]:
    """The comparison of methods, each with its evaluation of every seed.

    Args:
        tuned: blocks by method; `base` (one block) is what retention is measured against.
        reference: the method that the others are tested against on the same questions.
        main: the method that the comparison is about.

    Returns `{"main", "reference", "methods": {name: {"seeds", "scores": {score: S}, "drift": E,
    "drift_first": E, "agreement": E, "words": E, "weight_distance": E, "dominated_by": [name]}}, "front": [name],
    "chosen": {name: point}, "validation_questions": n, "points": [{"method", "point", "seeds", "chosen", "scores":
    {score: E}, "drift": E, ..., "front": bool}]}` with E a mean and its interval, or none, and S such an interval with
    `retention`, `base`, and the differences with their p to the reference (`against`) and to the base (`on_base`).
    `points` are all that were trained, and empty without a grid.
    """
    methods = tuned.methods
    if not methods or not all(methods.values()):
        raise ValueError("a comparison needs methods, and each at least one evaluation")
    names = list(dict.fromkeys(score for blocks in methods.values() for score in _verdicts(blocks[0])))
    results: dict[str, dict[str, Any]] = {
        name: {
            "seeds": len(blocks),
            "scores": {score: _score(score, name, methods, reference, seed) for score in names},
            **{key: _number(blocks, part, value) for key, part, value in _NUMBERS},
        }
        for name, blocks in methods.items()
    }
    places = _places(results)
    for name, result in results.items():
        result["dominated_by"] = dominated_by(name, places) if name in places else None
    return {
        "main": main,
        "reference": reference,
        "methods": results,
        "front": pareto_front(places),
        "chosen": tuned.chosen,
        "validation_questions": tuned.questions,
        "points": _points(tuned, names, seed),
    }


def _points(tuned: Tuned, scores: list[str], seed: int) -> list[dict[str, Any]]:
    """Every point of every method, the base's included, and which of them no other beats."""
    found = {
        f"{name}/{point}": {
            "method": name,
            "point": point,
            "seeds": len(blocks),
            "chosen": tuned.chosen.get(name, point) == point,
            "scores": {score: _mean(blocks, score, seed) for score in scores},
            **{key: _number(blocks, part, value) for key, part, value in _NUMBERS},
        }
        for name, points in tuned.points.items()
        for point, blocks in points.items()
    }
    front = pareto_front(_places(found))
    return [{**point, "front": name in front} for name, point in found.items()]


def _places(results: Mapping[str, dict[str, Any]]) -> dict[str, Place]:
    """Where each stands that has both domain accuracy and drift."""
    return {
        name: Place(result["scores"]["domain"]["mean"], result["drift"]["mean"])
        for name, result in results.items()
        if result["scores"].get("domain") and result["drift"]
    }


def _mean(blocks: Sequence[Block], score: str, seed: int) -> dict[str, Any] | None:
    """A score's mean and interval over all seeds; none where there are no verdicts."""
    tables = _tables(blocks, score)
    return asdict(estimate(tables, seed=seed)) if tables else None


def _tables(blocks: Sequence[Block], score: str) -> list[Sequence[float]]:
    """The verdicts of each seed; nothing where one of them has no such score."""
    tables = [verdicts[score] for verdicts in map(_verdicts, blocks) if score in verdicts]
    return tables if len(tables) == len(blocks) else []


_NUMBERS = (
    ("drift", "drift", "kl"),
    ("drift_first", "drift", "kl_first"),
    ("agreement", "drift", "top1_agreement"),
    ("words", "length", "words_mean"),
    ("weight_distance", "weight_distance", "total"),
)
"""Key of the comparison, part of a block, and the number in it."""


def _verdicts(block: Block) -> dict[str, Sequence[float]]:
    """The verdict on each question, or its score in [0, 1], by score; scores that were not taken are left out."""
    found: dict[str, Sequence[float]] = {}
    for part in ("domain", "ifeval"):
        if block.get(part):
            found[part] = block[part]["correct"]
    for shots, result in (block.get("mmlu") or {}).items():
        found[f"mmlu {shots}"] = result["correct"]
    if block.get("open"):
        found["open"] = block["open"]["scores"]
    return found


def _score(
    score: str, name: str, methods: Mapping[str, Sequence[Block]], reference: str, seed: int
) -> dict[str, Any] | None:
    result = _mean(methods[name], score, seed)
    if result is None:
        return None
    base = (_mean(methods.get(BASE, []), score, seed) or {}).get("mean")
    # A base that scored 0 had nothing to retain; `base` tells it from one that was not measured.
    result.update(base=base, retention=result["mean"] / base if base else None)
    for key, rival in (("against", reference), ("on_base", BASE)):
        other = _tables(methods.get(rival, []), score) if name != rival else []
        result[key] = asdict(paired(_tables(methods[name], score), other, seed=seed)) if other else None
    return result


def _number(blocks: Sequence[Block], part: str, value: str) -> dict[str, Any] | None:
    """A number that each seed has one of; none where one was not measured."""
    values = [block[part][value] for block in blocks if value in (block.get(part) or {})]
    return asdict(estimate_of(values)) if len(values) == len(blocks) else None
