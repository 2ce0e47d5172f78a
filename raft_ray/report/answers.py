"""Samples of answers, side by side: a question and every method's answer to it, for both kinds of pages."""

from __future__ import annotations

from typing import Any

from raft_ray.report.files import Record, in_order

SHOWN = 5
"""Questions shown of each kind, at most."""


def side_by_side(main: str, methods: dict[str, Record], part: str, limit: int = SHOWN) -> list[dict[str, Any]]:
    """The main method's first questions (or the first method's that has any), each with every method's sample.
    `methods`: block by method, as eval.json has it. `part`: of a block: `answers`, `general_answers` or `open_answers`.
    Returns `[{"prompt": all turns, "sample": the main method's own, "answers": [(method, sample or none)]}]`."""
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


def _asked(sample: Record) -> str:
    """The question; an open one's turns, a paragraph each."""
    return "\n\n".join(str(turn["prompt"]) for turn in sample.get("turns", [sample]))
