"""When to add a rollout actor and when to take one away, from how a step's time was spent. No Ray.

Learners that wait while all rollout actors work want one more; rollout actors that wait for places want one less.
After a change the policy watches `patience` steps before the next, since a new engine takes a while to show.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Elastic:
    """Keeps the number of rollout actors between two bounds.

    Args:
        least, most: actors. Equal bounds never change anything.
        patience: steps between two changes.
        waits: share of a step that learners wait, above which they starve.
        idles: share of the rollout actors' time without work, above which one of them is too many.
    """

    least: int
    most: int
    patience: int = 3
    waits: float = 0.2
    idles: float = 0.5
    _watched: int = 0

    def target(self, actors: int, *, learner_wait: float, rollout_busy: float) -> int:
        """Actors wanted after a step; at most one more or less than `actors`, and within the bounds at once.

        Args:
            learner_wait: share of the step that the learners waited for data, in [0, 1].
            rollout_busy: mean share of the step that a rollout actor worked, in [0, 1].
        """
        inside = min(max(actors, self.least), self.most)
        if inside != actors:
            self._watched = 0
            return inside
        self._watched += 1
        if self._watched < self.patience:
            return actors
        # One actor less must still carry the work: its share goes to the others.
        fewer = actors - 1
        spare = fewer >= self.least and rollout_busy * actors < fewer * (1 - self.waits)
        if learner_wait > self.waits and rollout_busy > self.idles and actors < self.most:
            self._watched = 0
            return actors + 1
        if learner_wait <= self.waits and 1 - rollout_busy > self.idles and spare:
            self._watched = 0
            return fewer
        return actors
