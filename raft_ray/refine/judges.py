"""Judges: score candidate answers in [0, 1] against the gold answer (Eq. 4's multi-judge selection).

Three are rules; `LlmJudge` is a language model, whose text comes from a `Generate`. Another judge is another class with
`name` and `score`. Knows nothing about rounds, rows or who wrote a candidate.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raft_ray.config import RefineConfig, SimilarityOn
from raft_ray.models.templates import fill
from raft_ray.models.thinking import without_thinking
from raft_ray.refine.embed import Embedder, semantic_filter
from raft_ray.refine.generation import Completion, Generate, Request
from raft_ray.refine.key_facts import canonical, key_facts, missing_facts

JUDGE_FIELDS = ("prompt", "answer", "candidate")
"""Fields of the prompt file of judges that are models."""
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


@dataclass(frozen=True)
class Case:
    """A candidate answer to be judged."""

    question: str
    gold: str
    candidate: str
    right: tuple[str, ...] = ()
    """Short answers of which a text must state one, where the row names them."""


class Judge(Protocol):
    """Scores candidates."""

    name: str

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        """A score in [0, 1] for each case, in order; 1 is best. None where this judge failed or answered nonsense."""
        ...


class EmbeddingJudge:
    """Agreement in meaning with the gold answer: the cosine of Eq. 2, negative values as 0."""

    name = "embedding"

    def __init__(self, embedder: Embedder, similarity_on: SimilarityOn = SimilarityOn.answer) -> None:
        self._embedder = embedder
        self._on = similarity_on

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        if not cases:
            return []
        gold_ND = self._embedder.embed([embedded_text(case.question, case.gold, self._on) for case in cases])
        candidate_ND = self._embedder.embed([embedded_text(case.question, case.candidate, self._on) for case in cases])
        similarity_N, _ = semantic_filter(gold_ND, candidate_ND, tau=0.0)
        return [max(0.0, float(value)) for value in similarity_N]


class KeyFactsJudge:
    """Share of the gold answer's key facts that a candidate states; 1 where there are none to lose."""

    name = "key_facts"

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        return [
            1.0
            - len(missing_facts(case.gold, case.candidate, case.right))
            / (1 if case.right else max(1, len(key_facts(case.gold))))
            for case in cases
        ]


class ExactJudge:
    """1 for the gold answer itself, whatever its case, punctuation and articles; else 0."""

    name = "exact"

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        return [float(canonical(case.candidate) == canonical(case.gold)) for case in cases]


class Verdict(BaseModel):
    """What a language model says of one candidate."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    score: float = Field(ge=0, le=1)
    reason: str = ""


@dataclass
class LlmJudge:
    """A `Judge` that asks a model, greedily. A verdict that cannot be read is no score, never a guessed one."""

    name: str
    """How `refine.judges` names it; its scores carry it."""
    generate: Generate
    template: str
    """Text of its prompt file, with `JUDGE_FIELDS`."""
    max_new_tokens: int
    """Limit of a verdict, its reason (and any thinking) included."""
    seed: int = 0
    """For models that sample although told not to."""
    failures: Counter[str] = field(default_factory=Counter)
    """How many candidates got no score, by reason: `failed` (no answer), `too_long`, `truncated`, `not_json`,
    `no_score`, `out_of_range`."""

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        return [verdict.score if verdict else None for verdict in self.verdicts(cases)]

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """The scores with the model's reasons."""
        prompts = [
            fill(self.template, prompt=case.question, answer=case.gold, candidate=case.candidate) for case in cases
        ]
        completions = self.generate(
            [Request([{"role": "user", "content": prompt}]) for prompt in prompts],
            temperature=0.0,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            schema=VERDICT_SCHEMA,
        )
        return [self._read(completion) for completion in completions]

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
    """The verdict that a model wrote: one JSON object, alone or in a code fence, thinking before it left out. Raises
    `NoVerdictError` with its `reason` for anything else."""
    if completion.failed is not None:
        raise NoVerdictError("failed")
    if completion.too_long:
        raise NoVerdictError("too_long")
    # First as it is: what its reason says may look like thinking.
    for text in (completion.text, without_thinking(completion.text)):
        fenced = _FENCE.fullmatch(text)
        try:
            return Verdict.model_validate_json(fenced.group(1) if fenced else text)
        except ValidationError as error:
            reason = _REASONS.get(error.errors()[0]["type"], "no_score")
    raise NoVerdictError("truncated" if completion.truncated else reason)


_REASONS = {
    "json_invalid": "not_json",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "out_of_range",
}
"""By pydantic's type of error; the others mean that there is no number where the score should be."""

JUDGES = (EmbeddingJudge.name, KeyFactsJudge.name, ExactJudge.name)
"""Those that are no models."""


def make_judges(
    refine: RefineConfig, embedder: Embedder, template: str = "", generate: Callable[[str], Generate] | None = None
) -> list[Judge]:
    """The judges that `refine.judges` names, in order. `template`: text of the prompt file of judges that are models.
    `generate`: the model of a name."""
    rules: dict[str, Judge] = {
        EmbeddingJudge.name: EmbeddingJudge(embedder, refine.similarity_on),
        KeyFactsJudge.name: KeyFactsJudge(),
        ExactJudge.name: ExactJudge(),
    }

    def by_model(name: str) -> Judge:
        assert generate is not None
        return LlmJudge(name, generate(name), template, max_new_tokens=refine.judge_max_new_tokens)

    return [rules[name] if name in rules else by_model(name) for name in refine.judges]


def embedded_text(question: str, answer: str, on: SimilarityOn) -> str:
    """What φ embeds: the answer, or question and answer (`refine.similarity_on`)."""
    return answer if on is SimilarityOn.answer else f"{question}\n{answer}"
