"""The seeded subset that is asked of a benchmark's questions, and shown of their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from raft_ray.errors import ConfigError

T = TypeVar("T")


def subset(items: Sequence[T], count: int | None, seed: int, refusal: str | None = None) -> list[T]:
    """At most `count` items (all for none), drawn with `seed`, in their own order. Raises `ConfigError`, beginning with
    `refusal`, where one is given and there are fewer."""
    if refusal is not None and count is not None and count > len(items):
        raise ConfigError(f"{refusal}; leave the key out for all of them")
    if count is None or count >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]
