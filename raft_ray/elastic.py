"""When to add a rollout actor and when to take one away. No Ray.

The rule is that of the advice which `raft-ray status` and the report give (`raft_ray.spans.bottleneck`): one more where
rollouts are the bottleneck, one less where learners are and fewer rollout actors would do. After a change the
policy watches `patience` steps before the next, since a new engine takes a while to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raft_ray.spans import Load, bottleneck


@dataclass
class Elastic:
    """Keeps the number of rollout actors between two bounds.

    Args:
        least, most: actors. Equal bounds never change anything.
        patience: steps between two changes.
    """

    least: int
    most: int
    patience: int = 3
    _watched: int = 0

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.least == self.most

    def target(self, actors: int, loads: Mapping[str, Load]) -> int:
        """Actors wanted after a step; at most one more or less than `actors`, and within the bounds at once.

        Args:
            loads: of the roles, since the last change.
        """
        inside = min(max(actors, self.least), self.most)
        if inside != actors:
            self._watched = 0
            return inside
        self._watched += 1
        found = bottleneck(loads)
        if self._watched < self.patience or found is None:
            return actors
        wanted = actors
        if found.role == "rollout":
            wanted = min(actors + 1, self.most)
        elif found.role == "learner" and "rollout" in loads and loads["rollout"].enough < actors:
            wanted = max(actors - 1, self.least)
        if wanted != actors:
            self._watched = 0
        return wanted
