"""How long a model's answers are: a model that fine-tuning has damaged often answers everything in three words.

Knows nothing about models: texts and token counts only.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def length(answers: Sequence[str], tokens: Sequence[int], truncated: Sequence[bool]) -> dict[str, float | int]:
    """Words (split at white space), tokens, and the share that the token limit cut off, over all `answers`.

    Args:
        answers: the texts.
        tokens: their token counts, the end-of-turn token included.
        truncated: whether the token limit ended the answer.

    Raises `ValueError` where the lengths differ or there is no answer.
    """
    if not answers or not len(answers) == len(tokens) == len(truncated):
        raise ValueError(f"{len(answers)} answers with {len(tokens)} token counts and {len(truncated)} ends")
    words = [len(answer.split()) for answer in answers]
    return {
        "words_mean": statistics.fmean(words),
        "words_median": float(statistics.median(words)),
        "tokens_mean": statistics.fmean(tokens),
        "truncated": sum(truncated) / len(truncated),
        "n": len(answers),
    }
