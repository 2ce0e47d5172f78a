"""What the benchmarks' loaders share: records to questions, and the seeded subset of them that is asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from raft_ray.data.sources import Records, Unusable
from raft_ray.errors import ConfigError, DataError

Item = TypeVar("Item")


def parsed(
    records: Records, parse: Callable[[dict[str, Any]], Item], where: str, form: str, unit: str = "line"
) -> Iterator[Item]:
    """What `parse` makes of each record; `DataError` names the line of an `Unusable` one and the `form` of a usable."""
    for place, record in records:
        try:
            if isinstance(record, Unusable):
                raise record
            yield parse(record)
        except Unusable as error:
            raise DataError(f"{where}, {unit} {place.line}: {error}; {form}") from error


def subset(items: Sequence[Item], count: int | None, seed: int, refusal: str | None = None) -> list[Item]:
    """At most `count` items (all for none), drawn with `seed`, in their own order.

    Raises `ConfigError`, beginning with `refusal`, where one is given and there are fewer.
    """
    if refusal is not None and count is not None and count > len(items):
        raise ConfigError(f"{refusal}; leave the key out for all of them")
    if count is None or count >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]
