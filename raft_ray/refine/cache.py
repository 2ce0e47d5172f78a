"""What models wrote, kept under the hash of everything that decides it.

    requests ── keys ──> store: known texts
                    └──> the missing ones, in one call ──> model ──> store, in one transaction ──> texts

So a run that goes on generates nothing again, and a changed setting only what it decides. One SQLite file, one writer.
Knows nothing about rows, stages or who the model is.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from raft_ray.errors import RaftError
from raft_ray.refine.generation import Completion, Generate, Request

Counts = dict[tuple[str, str], float]
"""(whose, what) -> how much: `rewriter self` and `misses`, for example."""

_TABLES = """
CREATE TABLE IF NOT EXISTS generations (key BLOB PRIMARY KEY, generation TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (whose TEXT, what TEXT, amount REAL, PRIMARY KEY (whose, what)) WITHOUT ROWID;
"""
_AT_ONCE = 500
"""Keys per query; SQLite has a limit."""


class Store(Protocol):
    """Where completions are kept; `CompletionStore`, or an actor that has one."""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        """Those of `keys` that are known."""
        ...

    def put(self, completions: Mapping[bytes, Completion], counts: Counts) -> None:
        """Keep all of them, or none if the process dies meanwhile; add to the counts."""
        ...


class CompletionStore:
    """Completions in a SQLite file, which survives the death of its process at any moment. Every method raises
    `RaftError`, which names the file, where it is damaged or its disk is full. `path`: of the file; made at the first
    use if it is not there. One process may have it open."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _base(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The process of a run that was killed may hold the file a moment longer.
        base = sqlite3.connect(self._path, timeout=60, check_same_thread=False)
        # Locked by one process, the write-ahead log needs no shared memory, which network file systems do not have.
        base.execute("PRAGMA locking_mode=EXCLUSIVE")
        base.execute("PRAGMA journal_mode=WAL")
        base.executescript(_TABLES)
        return base

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        found: dict[bytes, Completion] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            with self._named():
                rows = self._base.execute(f"SELECT key, generation FROM generations WHERE key IN ({marks})", some)
                found |= {key: Completion(**json.loads(text)) for key, text in rows}
        return found

    def put(self, completions: Mapping[bytes, Completion], counts: Counts) -> None:
        rows = [(key, json.dumps(asdict(one))) for key, one in completions.items()]
        with self._named(), self._base:
            self._base.executemany("INSERT OR REPLACE INTO generations VALUES (?, ?)", rows)
            self._base.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
                [(whose, what, amount) for (whose, what), amount in counts.items()],
            )

    def counts(self) -> Counts:
        """All that was counted since the file was made."""
        with self._named():
            return {(whose, what): amount for whose, what, amount in self._base.execute("SELECT * FROM counts")}

    def close(self) -> None:
        """Write what is in the log into the file itself, which then stands alone."""
        with self._named():
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._base.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            raise RaftError(
                f"{self._path}: cannot be read or written ({error}); free space there, or delete it and its -wal file: "
                "the texts in it are then generated again"
            ) from error


class CachedGenerate:
    """A model that is asked only for what the store does not know.

    What is missing of a call is generated in one call, whose seed comes from its requests: neither depends on who makes
    it or when. Equal requests of a call are one. What failed is not kept, and so tried again another time.

    Args:
        generate: the model.
        store: where its texts are kept.
        whose: for the counts: `hits`, `misses` and `failed` (requests), `input_tokens`, `output_tokens` (of what was
            generated), `seconds` (waited for the model).
        scope: requests of different scopes are independent: a text of one never turns up in another, whose result
            would then depend on which was first.
    """

    def __init__(self, generate: Generate, store: Store, whose: str, scope: str) -> None:
        self.identity = generate.identity
        self._generate = generate
        self._store = store
        self._whose = whose
        self._scope = scope

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Completion]:
        """As `Generate`; `seed` is the run's."""
        common = [self.identity, self._scope, temperature, max_new_tokens, seed, schema]
        keys = [_key([*common, request.chat, request.sample_index]) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        known = self._store.get(list(wanted))
        missing = {key: request for key, request in wanted.items() if key not in known}
        amounts: dict[str, float] = {"hits": len(known), "misses": len(missing)}
        made: dict[bytes, Completion] = {}
        if missing:
            start = time.monotonic()
            completions = self._generate(
                list(missing.values()),
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                # In [0, 2³¹), from all keys in order; those hold the run's seed.
                seed=int.from_bytes(hashlib.sha256(b"".join(missing)).digest()[:4]) % 2**31,
                schema=schema,
            )
            made = dict(zip(missing, completions, strict=True))
            amounts |= {
                "failed": sum(one.failed is not None for one in completions),
                "input_tokens": sum(one.input_tokens for one in completions),
                "output_tokens": sum(one.output_tokens for one in completions),
                "seconds": time.monotonic() - start,
            }
        counts = {(self._whose, what): amount for what, amount in amounts.items() if amount}
        self._store.put({key: one for key, one in made.items() if one.failed is None}, counts)
        found = known | made
        return [found[key] for key in keys]


def _key(parts: list[Any]) -> bytes:
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
