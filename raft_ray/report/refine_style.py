"""Length and style of many texts, taken in one after the other: words, sentences, variety, how they end.

Simple counts that hold for any language with spaces between words, and count characters where there are none.
Knows nothing about rows.
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
    """Running statistics. Empty texts count as texts, with no words."""

    def __init__(self) -> None:
        self.texts = 0
        self._words: Counter[int] = Counter()
        self._sentences = 0
        self._unfinished = 0
        self._segment: list[str] = []
        self._segments = 0
        self._variety = 0.0

    def add(self, text: str) -> None:
        """Take in a text."""
        words = [token.casefold() for token in words_of(text)]
        stripped = text.strip()
        self.texts += 1
        self._words[len(words)] += 1
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
        return self._total / self.texts if self.texts else None

    @property
    def words_median(self) -> float | None:
        """The middle length; the lower of the two middle ones of an even number."""
        seen = 0
        for length, count in sorted(self._words.items()):
            seen += count
            if 2 * seen >= self.texts:
                return float(length)
        return None

    @property
    def sentences_mean(self) -> float | None:
        return self._sentences / self.texts if self.texts else None

    @property
    def words_a_sentence(self) -> float | None:
        return self._total / self._sentences if self._sentences else None

    @property
    def variety(self) -> float | None:
        """Mean share of different words among `SEGMENT` in a row, over all texts; none for fewer words."""
        return self._variety / self._segments if self._segments else None

    @property
    def unfinished(self) -> float | None:
        """Share of texts that end without any closing mark, as one that was cut off in a sentence does."""
        return self._unfinished / self.texts if self.texts else None

    @property
    def _total(self) -> int:
        return sum(length * count for length, count in self._words.items())
