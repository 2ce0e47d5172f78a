"""What models have written before, kept by what made it, so that nothing is generated twice.

A text is kept under the hash of everything that it depends on: the model, the chat (and so the row and the prompt
file), which sample of it, the sampling, the run's seed. Another τ or another judge that is a rule finds all of them
again; another prompt or temperature finds those that do not depend on it. Knows nothing about Ray or stages.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raft_ray.refine.generation import Ask, Generate, Generation

Find = Callable[[list[str]], dict[str, Generation]]
Keep = Callable[[dict[str, Generation]], None]
_AT_ONCE = 500  # SQLite takes only so many values in one query


class Cache:
    """Generations by key in an SQLite file, which a death at any moment leaves whole."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, generation TEXT) WITHOUT ROWID")

    def find(self, keys: list[str]) -> dict[str, Generation]:
        """Those of `keys` that are there."""
        found: dict[str, Generation] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            query = f"SELECT key, generation FROM kept WHERE key IN ({','.join('?' * len(some))})"
            found |= {key: Generation(**json.loads(text)) for key, text in self._file.execute(query, some)}
        return found

    def keep(self, made: dict[str, Generation]) -> None:
        """Keep all of `made`, or, if this process dies meanwhile, none."""
        rows = [(key, json.dumps(asdict(generation), ensure_ascii=False)) for key, generation in made.items()]
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)

    def close(self) -> None:
        self._file.close()


class CachedGenerate:
    """A `Generate` that asks a model only for what is not kept yet.

    Args:
        generate: the model.
        run_seed: `run.seed`.
        find, keep: as those of `Cache`, which may live in another process.
    """

    def __init__(self, generate: Generate, run_seed: int, find: Find, keep: Keep) -> None:
        self.identity = generate.identity
        self._generate = generate
        self._run_seed = run_seed
        self._find = find
        self._keep = keep

    def __call__(
        self,
        asks: Sequence[Ask],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Generation]:
        common = [self.identity, self._run_seed, temperature, max_new_tokens, schema]
        keys = [key_of(ask, common) for ask in asks]
        found = self._find(list(dict.fromkeys(keys)))
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in found}
        if missing:
            made = self._generate(
                list(missing.values()),
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=seed,
                schema=schema,
            )
            new = dict(zip(missing, made, strict=True))
            # What failed may succeed the next time.
            self._keep({key: generation for key, generation in new.items() if generation.failed is None})
            found |= new
        return [found[key] for key in keys]


def key_of(ask: Ask, common: list[Any]) -> str:
    """SHA-256 of an ask and what it has in common with the others of its call, in hex."""
    text = json.dumps([ask.chat, ask.draw, common], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
