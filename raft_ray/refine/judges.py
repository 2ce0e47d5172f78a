"""Judges: score candidate answers in [0, 1] against the gold answer (Eq. 4's multi-judge selection).

Another judge is another class with `name` and `score`. Knows nothing about rounds, rows or who wrote a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raft_ray.config import SimilarityOn
from raft_ray.refine.embed import Embedder
from raft_ray.refine.filter import semantic_filter
from raft_ray.refine.key_facts import key_facts, missing_facts, normalise


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
        gold_ND, candidate_ND = (
            self._embedder.embed([embedded_text(case.question, text(case), self._on) for case in cases])
            for text in (lambda case: case.gold, lambda case: case.candidate)
        )
        similarity_N, _ = semantic_filter(gold_ND, candidate_ND, tau=0.0)
        return [max(0.0, float(value)) for value in similarity_N]


class KeyFactsJudge:
    """Share of the gold answer's key facts that a candidate states; 1 where there are none to lose."""

    name = "key_facts"

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        return [self._one(case) for case in cases]

    def _one(self, case: Case) -> float:
        missing = len(missing_facts(case.gold, case.candidate, case.right))
        return 1.0 - missing / (1 if case.right else max(1, len(key_facts(case.gold))))


class ExactJudge:
    """1 for the gold answer itself, whatever its case, punctuation and articles; else 0."""

    name = "exact"

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        return [float(normalise(case.candidate) == normalise(case.gold)) for case in cases]


JUDGES = (EmbeddingJudge.name, KeyFactsJudge.name, ExactJudge.name)


def make_judges(names: list[str], embedder: Embedder, similarity_on: SimilarityOn = SimilarityOn.answer) -> list[Judge]:
    """The judges of these names, each one of `JUDGES`, in order."""
    made: dict[str, Judge] = {
        EmbeddingJudge.name: EmbeddingJudge(embedder, similarity_on),
        KeyFactsJudge.name: KeyFactsJudge(),
        ExactJudge.name: ExactJudge(),
    }
    return [made[name] for name in names]


def embedded_text(question: str, answer: str, on: SimilarityOn) -> str:
    """What φ embeds: the answer, or question and answer (`refine.similarity_on`)."""
    return answer if on is SimilarityOn.answer else f"{question}\n{answer}"
