"""Which of the prompts that a model writes itself are of use: whole, of some length, and none like another.

Knows nothing about models or Ray: texts in, texts and counts out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raft_ray.data.messages import checked
from raft_ray.data.normalise import keys, visible
from raft_ray.json_files import Unusable

LEAST = 3
"""Words of a prompt."""
REPETITIVE = 0.5
"""Share of a text's pairs of words that must differ, from `LEAST_PAIRS` pairs on."""
LEAST_PAIRS = 8
NEAR = 0.95
"""Cosine from which two prompts count as one."""


class Sieve:
    """Keeps what is of use, in order, and counts the rest by reason. `fits`: whether a text can be asked as it stands,
    with room for an answer. `embed`: texts to vectors [N, d], as the embedder of stage 1 does."""

    def __init__(self, fits: Callable[[str], bool], embed: Callable[[list[str]], npt.NDArray[np.float32]]) -> None:
        self.kept: list[str] = []
        self.refused: Counter[str] = Counter()
        self._fits, self._embed = fits, embed
        self._seen: set[tuple[str, ...]] = set()
        self._directions: list[npt.NDArray[np.float32]] = []

    def add(self, written: Iterable[tuple[str, bool]]) -> None:
        """Take in texts, each with whether the token limit cut it off."""
        fresh = []
        for text, truncated in written:
            text = text.strip()
            if reason := self._unfit(text, truncated):
                self.refused[reason] += 1
            else:
                self._seen.add(tuple(keys(text)))
                fresh.append(text)
        for text, vector in zip(fresh, self._embed(fresh) if fresh else [], strict=True):
            direction = vector / max(float(np.linalg.norm(vector)), 1e-12)
            if self._directions and float((np.stack(self._directions) @ direction).max()) >= NEAR:
                self.refused["like another"] += 1
                continue
            self._directions.append(direction)
            self.kept.append(text)

    def summary(self) -> str:
        """What was refused, in words."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.refused.most_common())
        return f"{self.refused.total()} refused" + (f" ({reasons})" if reasons else "")

    def _unfit(self, text: str, truncated: bool) -> str | None:
        if not visible(text):
            return "empty"
        if truncated:
            return "cut off"
        try:
            checked(text, "")
        except Unusable:
            return "unreadable"
        words = keys(text)
        if len(words) < LEAST:
            return "too short"
        pairs = list(pairwise(words))
        if len(pairs) >= LEAST_PAIRS and len(set(pairs)) < REPETITIVE * len(pairs):
            return "repetitive"
        if tuple(words) in self._seen:
            return "written before"
        if not self._fits(text):
            return "without room"
        return None
