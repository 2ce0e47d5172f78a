"""How long a model's answers are: a model that fine-tuning has damaged often answers everything in three words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median


def length(answers: Sequence[str], tokens: Sequence[int], truncated: Sequence[bool]) -> dict[str, float | int]:
    """Words (split at white space), tokens (end-of-turn token included), and the share that the token limit cut off.

    Raises `ValueError` where the lengths differ or there is no answer.
    """
    if not answers or not len(answers) == len(tokens) == len(truncated):
        raise ValueError(f"{len(answers)} answers with {len(tokens)} token counts and {len(truncated)} ends")
    words = [len(answer.split()) for answer in answers]
    return {
        "words_mean": fmean(words),
        "words_median": float(median(words)),
        "tokens_mean": fmean(tokens),
        "truncated": fmean(truncated),
        "n": len(answers),
    }
