"""Length and style of many texts, taken in one after the other: words, sentences, variety, how they end.

Simple counts that hold for any language with spaces between words, and count characters where there are none.
"""

from __future__ import annotations

import re
from collections import Counter

from raft_ray.data.normalise import words as words_of

SEGMENT = 100
"""Words over which variety is taken, so that texts of other lengths can be compared."""

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]*_`]*(?=\s|$)|[。！？]")
_FINISHED = re.compile(r"(?:[.!?…:;。！？]|```)[\"'”’»)\]*_`]*$")


class Style:
    """Running statistics. Empty texts count as texts, with no words; a mean over nothing is none."""

    def __init__(self) -> None:
        self.texts = self._words = self._sentences = self._unfinished = self._segments = 0
        self._lengths: Counter[int] = Counter()
        self._segment: list[str] = []
        self._variety = 0.0

    def add(self, text: str) -> None:
        """Take in a text."""
        words = [token.casefold() for token in words_of(text)]
        stripped = text.strip()
        self.texts += 1
        self._words += len(words)
        self._lengths[len(words)] += 1
        if stripped:
            ends = [match.end() for match in _SENTENCE_END.finditer(stripped)]
            self._sentences += len(ends) + (not ends or ends[-1] < len(stripped))
            self._unfinished += _FINISHED.search(stripped) is None
        self._segment += words
        while len(self._segment) >= SEGMENT:
            segment, self._segment = self._segment[:SEGMENT], self._segment[SEGMENT:]
            self._variety += len(set(segment)) / SEGMENT
            self._segments += 1

    @property
    def words_mean(self) -> float | None:
        return _mean(self._words, self.texts)

    @property
    def words_median(self) -> float | None:
        """The middle length; the lower of the two middle ones of an even number."""
        seen = 0
        for length, count in sorted(self._lengths.items()):
            seen += count
            if 2 * seen >= self.texts:
                return float(length)
        return None

    @property
    def sentences_mean(self) -> float | None:
        return _mean(self._sentences, self.texts)

    @property
    def words_per_sentence(self) -> float | None:
        return _mean(self._words, self._sentences)

    @property
    def variety(self) -> float | None:
        """Mean share of different words among `SEGMENT` in a row, over all texts; none for fewer words."""
        return _mean(self._variety, self._segments)

    @property
    def unfinished(self) -> float | None:
        """Share of texts that end without any closing mark, as one that was cut off in a sentence does."""
        return _mean(self._unfinished, self.texts)


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
