"""Samples of answers, side by side: a question, and every method's answer to it. For the pages of runs and comparisons.

Reads blocks as eval.json has them. Knows nothing about HTML.
"""

from __future__ import annotations

from typing import Any

from raft_ray.report.files import Row, in_order
from raft_ray.report.words import format_percent

SHOWN = 5
"""Questions shown of each kind, at most."""


def side_by_side(main: str, methods: dict[str, Row], part: str, limit: int = SHOWN) -> list[dict[str, Any]]:
    """The main method's first questions (or the first method's that has any), each with every method's sample.

    Args:
        methods: block by method.
        part: of a block: `answers`, `general_answers` or `open_answers`.

    Returns `[{"prompt", "sample": the main method's own, "answers": [(method, sample or none)]}]`.
    """
    leader = next((name for name in [main, *methods] if (methods.get(name) or {}).get(part)), None)
    if leader is None:
        return []
    samples = {name: {_asked(sample): sample for sample in m.get(part) or []} for name, m in methods.items()}
    shown = [name for name in in_order(methods) if samples[name]]
    return [
        {
            "prompt": _asked(sample),
            "sample": sample,
            "answers": [(name, samples[name].get(_asked(sample))) for name in shown],
        }
        for sample in methods[leader][part][:limit]
    ]


def open_answers(main: str, methods: dict[str, Row], limit: int = SHOWN) -> list[dict[str, Any]]:
    """The same of open questions, with what the judges say.

    Returns `[{"prompt": all turns, "references": [text], "answers": [(method, {"score": text, "turns": [(answer,
    [what a judge says])]} or none)]}]`.
    """
    return [
        {
            "prompt": one["prompt"],
            "references": [turn["reference"] for turn in one["sample"]["turns"] if turn.get("reference")],
            "answers": [(name, _judged(sample) if sample else None) for name, sample in one["answers"]],
        }
        for one in side_by_side(main, methods, "open_answers", limit)
    ]


def _asked(sample: Row) -> str:
    """The question; an open one's turns, a paragraph each."""
    return "\n\n".join(str(turn["prompt"]) for turn in sample.get("turns", [sample]))


def _judged(sample: Row) -> dict[str, Any]:
    turns = [
        (turn.get("answer"), [_said(name, said) for name, said in turn["judges"].items()]) for turn in sample["turns"]
    ]
    return {"score": format_percent(sample["score"]), "turns": turns}


def _said(judge: str, said: Row) -> str:
    """`strong, 80%: short but right`."""
    score = "no verdict" if said["score"] is None else format_percent(said["score"])
    return f"{judge}, {score}" + (f": {said['reason']}" if said["reason"] else "")
