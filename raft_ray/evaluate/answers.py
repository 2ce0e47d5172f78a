"""What a model wrote, and how long it is: one that fine-tuning has damaged often answers everything in three words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median


@dataclass(frozen=True)
class Answer:
    """A prompt without room in the context stays unanswered, which counts as wrong and cut off."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    truncated: bool = True
    correct: dict[str, bool] = field(default_factory=dict)
    """Verdicts by measure, where they were made with it."""


def length(answers: Sequence[Answer]) -> dict[str, float | int]:
    """Words (split at white space), tokens (end-of-turn token included), and the share that the token limit cut off.
    Raises `ValueError` where there is no answer."""
    if not answers:
        raise ValueError("the length of no answers")
    words = [len(answer.text.split()) for answer in answers]
    return {
        "words_mean": fmean(words),
        "words_median": float(median(words)),
        "tokens_mean": fmean(len(answer.token_ids) for answer in answers),
        "truncated": fmean(answer.truncated for answer in answers),
        "n": len(answers),
    }
