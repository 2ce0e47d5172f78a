"""A judge that is a language model: it reads question, gold answer and candidate, and gives a score with its reason.

Knows nothing about who the model is or where it runs: text comes from a `Generate`. A verdict that cannot be read is
no score, never a guessed one: the caller leaves it out of the mean.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raft_ray.models.templates import fill
from raft_ray.models.thinking import without_thinking
from raft_ray.refine.generation import Completion, Generate, Request
from raft_ray.refine.judges import Case

SCORES = tuple(tenth / 10 for tenth in range(11))
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    # The reason comes first: a score that follows from it is better than a reason that follows from a score.
    "properties": {"reason": {"type": "string"}, "score": {"type": "number", "enum": list(SCORES)}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}
"""What a model that can be held to a schema is held to. Tenths, so that a number ends."""

_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
_log = logging.getLogger(__name__)


class Verdict(BaseModel):
    """What a judge says of one candidate."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    score: float = Field(ge=0, le=1)
    reason: str = ""


class LlmJudge:
    """A `Judge` that asks a model, greedily.

    Args:
        name: how `refine.judges` names it; its scores carry it.
        generate: the model.
        template: text of its prompt file, with `raft_ray.refine.prompts.JUDGE_FIELDS`.
        max_new_tokens: limit of a verdict, its reason (and any thinking) included.
        seed: of models that sample although told not to.

    Attributes:
        failures: how many candidates got no score, by reason: `failed` (no answer), `too_long`, `truncated`,
            `not_json`, `no_score`, `out_of_range`.
    """

    def __init__(self, name: str, generate: Generate, template: str, *, max_new_tokens: int, seed: int = 0) -> None:
        self.name = name
        self.failures: Counter[str] = Counter()
        self._generate = generate
        self._template = template
        self._max_new_tokens = max_new_tokens
        self._seed = seed

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        """A score in [0, 1] for each case, in order; none where the model failed or answered nonsense."""
        return [verdict.score if verdict else None for verdict in self.verdicts(cases)]

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """The same with the model's reasons."""
        completions = self._generate(
            [Request([{"role": "user", "content": self._prompt(case)}]) for case in cases],
            temperature=0.0,
            max_new_tokens=self._max_new_tokens,
            seed=self._seed,
            schema=VERDICT_SCHEMA,
        )
        return [self._read(completion) for completion in completions]

    def _prompt(self, case: Case) -> str:
        return fill(self._template, prompt=case.question, answer=case.gold, candidate=case.candidate)

    def _read(self, completion: Completion) -> Verdict | None:
        try:
            return read_verdict(completion)
        except NoVerdictError as error:
            self.failures[error.reason] += 1
            _log.debug("judge %s: no score (%s): %r", self.name, error.reason, completion.text[:200])
            return None


class NoVerdictError(ValueError):
    """A completion that is no verdict."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_verdict(completion: Completion) -> Verdict:
    """The verdict that a model wrote: one JSON object, alone or in a code fence, thinking before it left out.

    Raises `NoVerdictError` with its `reason` for anything else.
    """
    if completion.failed is not None:
        raise NoVerdictError("failed")
    if completion.too_long:
        raise NoVerdictError("too_long")
    text = without_thinking(completion.text)
    fenced = _FENCE.fullmatch(text)
    try:
        return Verdict.model_validate_json(fenced.group(1) if fenced else text)
    except ValidationError as error:
        if completion.truncated:
            raise NoVerdictError("truncated") from None
        raise NoVerdictError(_REASONS.get(error.errors()[0]["type"], "no_score")) from None


_REASONS = {
    "json_invalid": "not_json",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "out_of_range",
}
"""By pydantic's type of error; the others mean that there is no number where the score should be."""
