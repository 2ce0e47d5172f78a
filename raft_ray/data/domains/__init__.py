"""Domains that need no download: question and answer rows made of facts that small Python packages ship.

`data.train=domain:chemistry` takes a domain's training questions, `data.test=domain:chemistry` the same facts asked
twice in other words. `domain:chemistry:200` takes 200 of the facts, spread evenly, the same ones in both. A new domain
is a module with `rows(split)` and a line in `DOMAINS`. Knows nothing about models.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from raft_ray.data.domains import chemistry, geography
from raft_ray.data.domains.facts import QUESTIONS, Split
from raft_ray.errors import DataError

DOMAINS: dict[str, Callable[[Split], list[dict[str, Any]]]] = {
    "chemistry": chemistry.rows,
    "geography": geography.rows,
}


def load(name: str, split: Split) -> list[dict[str, Any]]:
    """The domain's rows, always in the same order: `prompt`, `answer`, `answers` (list), and what the fact is about.
    `name`: a key of `DOMAINS`, or `NAME:COUNT` for so many of its facts. `split`: `train` or `test`; the fact of row i
    of training is asked in rows 2i and 2i+1 of testing. Raises `DataError` for an unknown name (the nearest one is
    given), a count that the domain does not have, or a missing package."""
    name, _, count = name.partition(":")
    if name not in DOMAINS:
        near = difflib.get_close_matches(name, DOMAINS, n=1, cutoff=0)
        raise DataError(f"data.{split}=domain:{name}: no such domain; did you mean domain:{near[0]}?")
    rows = DOMAINS[name](split)
    if not count:
        return rows
    asked = QUESTIONS[split]
    facts = len(rows) // asked
    if not count.isdecimal() or not 1 <= int(count) <= facts:
        raise DataError(f"data.{split}=domain:{name}:{count}: name a number of facts from 1 to {facts}")
    chosen = [i * facts // int(count) for i in range(int(count))]
    return [row for fact in chosen for row in rows[fact * asked : (fact + 1) * asked]]
