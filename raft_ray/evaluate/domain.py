"""Domain accuracy: is a response right? By default, if it contains one of the answers that count as right.

A stricter measure is that the response is such an answer and nothing else (`exact`). Where rows name choices, the
model's choice can be read off its log-likelihoods instead (`raft_ray.models.likelihood`); `summary` joins them.

Response and answer are read as tokens (the table in `raft_ray.data.normalise`); the answer's tokens must occur in the
response side by side, numbers with their sign and unit. Two things need more care than that:

- An answer of one or two letters is a symbol (`Au`, `He`, `R`) and is compared with its case; where the symbol is an
  English word too (`In`, `As`, `I`), its use as that word at the start of a sentence does not count.
- `yes` and `no` (`true` and `false`) exclude each other: the first of the two in the response decides.

Knows nothing about models, prompts or files: texts only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from raft_ray.config import DomainMetric
from raft_ray.data.normalise import has_punctuation, has_symbol, is_short, keys, occurs, tokens, visible
from raft_ray.errors import DataError

_OPPOSITES = ({"yes", "no"}, {"true", "false"})


def contains(response: str, answers: Sequence[str]) -> bool:
    """Whether any of `answers` occurs in `response`, by the rules above. Raises `DataError` on a blank answer."""
    return any(_contains(response, answer) for answer in answers)


def exact(response: str, answers: Sequence[str]) -> bool:
    """Whether `response` is one of `answers` and nothing else, by the same rules. Raises `DataError` likewise."""
    return any(
        _contains(response, answer) and keys(response, answer=True) == keys(answer, answer=True) for answer in answers
    )


def summary(verdicts: Mapping[str, Sequence[bool]], metric: DomainMetric) -> dict[str, Any]:
    """The `domain` part of `eval.json`: every measure that was taken, and the one that counts. `verdicts`: for each
    measure (`contains`, `exact`, `choice`, `choice_norm`, `letter`, `judged`), whether each question was answered
    right. `metric`: the measure that `accuracy` and `correct` are of; `auto` takes `choice` where it was taken, else
    `contains`. Returns `{"accuracy", "n", "correct", "metric", "metrics": {measure: {"accuracy", "correct"}}}`. Raises
    `ValueError` where the measures differ in length or nothing was asked."""
    counts = {len(rights) for rights in verdicts.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"domain measures over {sorted(counts)} questions")
    chosen = metric.value
    if metric is DomainMetric.auto:
        chosen = "choice" if "choice" in verdicts else "contains"
    metrics = {name: {"accuracy": fmean(rights), "correct": list(rights)} for name, rights in verdicts.items()}
    return {**metrics[chosen], "n": counts.pop(), "metric": chosen, "metrics": metrics}


def _contains(response: str, answer: str) -> bool:
    if not visible(answer):
        raise DataError("an answer is blank: every response would count as right; remove the row")
    wanted = tokens(answer)
    if not wanted:
        return has_punctuation(response, answer)
    for pair in _OPPOSITES:
        if len(wanted) == 1 and wanted[0].key in pair:
            return next((key for key in keys(response) if key in pair), None) == wanted[0].key
    if is_short(wanted):
        return has_symbol(response, wanted[0].text)
    return occurs(keys(response), keys(answer, answer=True))
