"""Judges that are models: they read question, gold answer and candidate, and answer with a score as JSON (Eq. 4).

Knows nothing about who the model is. What is no score is None, and counted by its reason.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raft_ray.refine.generation import Ask, Generate
from raft_ray.refine.guards import without_thoughts
from raft_ray.refine.judges import Case
from raft_ray.templates import fill

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 200},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
"""The reason comes first, so that the score follows from it."""
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


class LlmJudge:
    """A judge by a model, at temperature 0.

    Args:
        name: under which its scores stand in the trail.
        generate: the model.
        template: text of the prompt file, with the fields `prompt`, `answer`, `candidate`.
        max_new_tokens: of its answer; one that is cut off is no answer.
    """

    def __init__(self, name: str, generate: Generate, template: str, max_new_tokens: int = 256) -> None:
        self.name = name
        self.failures: Counter[str] = Counter()
        """How often there was no score, by reason."""
        self._generate = generate
        self._template = template
        self._max_new_tokens = max_new_tokens

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        """A score in [0, 1] for each case; None where the model failed or answered nonsense."""
        asks = [Ask([{"role": "user", "content": self._prompt(case)}]) for case in cases]
        answers = self._generate(asks, temperature=0.0, max_new_tokens=self._max_new_tokens, seed=0, schema=SCHEMA)
        return [self._noted(parsed("" if g.failed else g.text, failed=g.failed is not None)) for g in answers]

    def _prompt(self, case: Case) -> str:
        return fill(self._template, prompt=case.question, answer=case.gold, candidate=case.candidate)

    def _noted(self, found: float | str) -> float | None:
        if isinstance(found, str):
            self.failures[found] += 1
            return None
        return found


def parsed(text: str, *, failed: bool = False) -> float | str:
    """The score that a model's answer holds, or why it holds none: `failed`, `not JSON`, `no score`, `out of range`."""
    if failed:
        return "failed"
    text = without_thoughts(text).strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return "not JSON"
    score = answer.get("score") if isinstance(answer, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float):
        return "no score"
    return float(score) if math.isfinite(score) and 0 <= score <= 1 else "out of range"
