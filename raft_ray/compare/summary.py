"""Joins the evaluations of methods and seeds into one comparison: means, intervals, retention, tests, the front.

Reads blocks as `eval.json` has them (`docs/design.md`) and returns plain data: the content of `compare.json`. Every
score is a measurement of its own; what a method lacks is none, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raft_ray.compare.front import Place, dominated_by, pareto_front
from raft_ray.compare.statistics import estimate, estimate_of, paired

Block = dict[str, Any]
BASE = "base"


def compare(methods: Mapping[str, Sequence[Block]], *, reference: str = "sft", seed: int = 0) -> dict[str, Any]:
    """The comparison of `methods`, each with its evaluation of every seed.

    Args:
        methods: blocks by method; `base` (one block) is what retention is measured against.
        reference: the method that the others are tested against on the same questions.

    Returns `{"reference", "methods": {name: {"seeds", "scores": {score: S}, "drift": E, "words": E,
    "agreement": E, "weight_distance": E, "dominated_by": [name]}}, "front": [name]}` with E a mean and its interval, or
    none, and S such an interval with `retention`, `base` and `against` (difference, p) to the reference.
    """
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
    places = {
        name: Place(result["scores"]["domain"]["mean"], result["drift"]["mean"])
        for name, result in results.items()
        if result["scores"].get("domain") and result["drift"]
    }
    for name, result in results.items():
        result["dominated_by"] = dominated_by(name, places) if name in places else None
    return {"reference": reference, "methods": results, "front": pareto_front(places)}


_NUMBERS = (
    ("drift", "drift", "kl"),
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
    tables = {
        method: [_verdicts(block)[score] for block in blocks]
        for method, blocks in methods.items()
        if all(score in _verdicts(block) for block in blocks)
    }
    if name not in tables:
        return None
    result: dict[str, Any] = asdict(estimate(tables[name], seed=seed))
    base = estimate(tables[BASE], seed=seed).mean if BASE in tables else None
    # A base that scored 0 had nothing to retain; `base` tells it from one that was not measured.
    result.update(base=base, retention=result["mean"] / base if base else None, against=None)
    if name != reference and reference in tables:
        result["against"] = asdict(paired(tables[name], tables[reference], seed=seed))
    return result


def _number(blocks: Sequence[Block], part: str, value: str) -> dict[str, Any] | None:
    """A number that each seed has one of."""
    values = [block[part][value] for block in blocks if block.get(part)]
    return asdict(estimate_of(values)) if len(values) == len(blocks) else None
