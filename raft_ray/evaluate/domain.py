"""Domain accuracy: is a response right? By default, if it contains one of the answers that count as right.

A stricter measure is that the response is such an answer and nothing else (`exact`). Where rows name choices, the
model's choice can be read off its log-likelihoods instead (`raft_ray.evaluate.likelihood`); `summary` joins them.

Response and answer are normalised (Unicode NFKC, lower case, punctuation and articles removed) and cut into
words; the answer's words must occur in the response side by side. Four things need more care than that:

- Numbers are words with their sign, decimals and thousands (`1,000` is `1000`), so `7` is not in `1.7`.
- An answer of one or two letters is a symbol (`Au`, `He`) and is compared with its case; where the symbol is an
  English word too (`In`, `As`, `I`), its use as that word at the start of a sentence does not count.
- `yes` and `no` (`true` and `false`) exclude each other: the first of the two in the response decides.
- Scripts without spaces are compared character by character.

Knows nothing about models, prompts or files: texts only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from raft_ray.config import DomainMetric
from raft_ray.errors import DataError

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
_NUMBER = r"(?:(?<![\p{L}\p{M}\p{N}])-)?\p{Nd}+(?:[.,]\p{Nd}+)*"
_WORD = regex.compile(rf"{_UNSPACED}|{_NUMBER}|[\p{{L}}\p{{M}}\p{{N}}]+")
_THOUSANDS = regex.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")

_OPPOSITES = ({"yes", "no"}, {"true", "false"})
_SYMBOLS_AND_WORDS = frozenset(
    {"Am", "An", "As", "At", "Be", "By", "Do", "He", "If", "In", "Is", "It", "Of", "On", "So", "To"}
)


def contains(response: str, answers: Sequence[str]) -> bool:
    """Whether any of `answers` occurs in `response`, by the rules above. Raises `DataError` on a blank answer."""
    text = _unify(response)
    return any(_contains(text, answer) for answer in answers)


def exact(response: str, answers: Sequence[str]) -> bool:
    """Whether `response` is one of `answers` and nothing else, by the same rules.

    Raises `DataError` on a blank answer.
    """
    text = _unify(response)
    return any(
        _contains(text, answer) and _words(text, answer=True) == _words(_unify(answer), answer=True)
        for answer in answers
    )


def summary(verdicts: Mapping[str, Sequence[bool]], metric: DomainMetric) -> dict[str, Any]:
    """The `domain` part of `eval.json`: every measure that was taken, and the one that counts.

    Args:
        verdicts: for each measure (`contains`, `exact`, `choice`, `choice_norm`, `letter`, `judged`), whether each
            question was answered right.
        metric: the measure that `accuracy` and `correct` are of; `auto` takes `choice` where it was taken, else
            `contains`.

    Returns `{"accuracy", "n", "correct", "metric", "metrics": {measure: {"accuracy", "correct"}}}`. Raises
    `ValueError` where the measures differ in length or nothing was asked.
    """
    counts = {len(rights) for rights in verdicts.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"domain measures over {sorted(counts)} questions")
    chosen = metric.value
    if metric is DomainMetric.auto:
        chosen = "choice" if "choice" in verdicts else "contains"
    metrics = {
        name: {"accuracy": sum(rights) / len(rights), "correct": list(rights)} for name, rights in verdicts.items()
    }
    return {**metrics[chosen], "n": counts.pop(), "metric": chosen, "metrics": metrics}


def accuracy(responses: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float, list[bool]]:
    """Share of `responses` that contain one of their own `answers`, and the verdict on each.

    Raises `ValueError` where the lengths differ or nothing was asked.
    """
    if len(responses) != len(answers) or not responses:
        raise ValueError(f"{len(responses)} responses for {len(answers)} questions")
    correct = [contains(response, accepted) for response, accepted in zip(responses, answers, strict=True)]
    return sum(correct) / len(correct), correct


def _contains(text: str, answer: str) -> bool:
    wanted = _unify(answer)
    if not wanted.strip():
        raise DataError("an answer is blank: every response would count as right; remove the row")
    words = _WORD.findall(wanted)
    if not words:
        return wanted.strip() in text
    lowered = words[0].lower() if len(words) == 1 else ""
    for pair in _OPPOSITES:
        if lowered in pair:
            return next((word for word in _words(text) if word in pair), None) == lowered
    if lowered and len(lowered) <= 2 and lowered.isalpha() and not regex.fullmatch(_UNSPACED, words[0]):
        return _contains_symbol(text, words[0])
    return _occurs(_words(text), _words(wanted, answer=True))


def _contains_symbol(text: str, symbol: str) -> bool:
    """Whether `symbol` is a word of `text` in this case, other than as an English word."""
    for match in _WORD.finditer(text):
        if match.group() != symbol:
            continue
        prose = regex.match(r"(?:\s+|['’])\p{Ll}", text[match.end() :]) is not None
        if symbol == "I" and prose:
            continue
        starts_sentence = regex.search(r"(?:^|[.!?:\n])\s*$", text[: match.start()]) is not None
        if symbol in _SYMBOLS_AND_WORDS and starts_sentence and prose:
            continue
        return True
    return False


def _unify(text: str) -> str:
    """NFKC, one minus sign."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _words(text: str, answer: bool = False) -> list[str]:
    """Lower-case words without articles; an answer that is nothing but articles keeps them."""
    words = _WORD.findall(text)
    # A capital A is a name (vitamin A) unless it opens the answer.
    kept = [
        word
        for place, word in enumerate(words)
        if word.lower() not in ("the", "an") and word != "a" and not (word == "A" and answer and place == 0)
    ]
    return [_number(word).lower() for word in kept or words]


def _number(word: str) -> str:
    return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word


def _occurs(words: list[str], wanted: list[str]) -> bool:
    size = len(wanted)
    return any(words[start : start + size] == wanted for start in range(len(words) - size + 1))
