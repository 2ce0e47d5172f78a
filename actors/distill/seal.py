"""The seal on a checkpoint: nobody without the run's key can change one of its files unnoticed.

```
 rank R: files of its part ── HMAC-SHA-256 each ──> part-R.json {step, rank, ranks, files, mac over all of this}
 reader: part-R.json, its own mac ──> files ── hashed while they are copied or read ──> the same macs?
```

The key is `checkpoint.key` in the run folder, made when the run starts and readable by its owner alone. The driver and
the pipeline actor read it there, and learners ask the pipeline actor, so that it is in no argument that Ray records.

Knows nothing about where checkpoints lie or what is in them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raft_ray.errors import RaftError
from raft_ray.files import writing

KEY_FILE = "checkpoint.key"
_BLOCK = 8 << 20
_BRING = "bring it along with the run folder, or start a new run with --run-dir: no checkpoint opens without it"


@dataclass(frozen=True)
class Part:
    """What a rank has written of a checkpoint."""

    step: int
    rank: int
    ranks: int
    files: dict[str, tuple[int, str]]
    """By path in the checkpoint: bytes, and the MAC."""

    def pack(self, key: bytes) -> str:
        """The text of `part-R.json`."""
        return json.dumps({**asdict(self), "mac": self._mac(key)})

    @classmethod
    def unpack(cls, text: bytes, key: bytes) -> Part | None:
        """The part of a `part-R.json`; none where it was not written so with `key`."""
        try:
            value: dict[str, Any] = json.loads(text)
            mac = value.pop("mac")
            part = cls(**{**value, "files": {name: (size, mac) for name, (size, mac) in value["files"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return part if hmac.compare_digest(str(mac), part._mac(key)) else None

    def _mac(self, key: bytes) -> str:
        return hmac.new(key, json.dumps(asdict(self), sort_keys=True).encode(), "sha256").hexdigest()


def make_key(run_dir: Path) -> None:
    """Put a new key into a run folder that has none. Raises `RaftError` where it cannot be written."""
    path = run_dir / KEY_FILE
    with writing(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")


def read_key(run_dir: Path) -> bytes:
    """The key of a run folder. Raises `RaftError` where there is none."""
    path = run_dir / KEY_FILE
    try:
        key = bytes.fromhex(path.read_text())
    except (OSError, ValueError) as error:
        raise RaftError(f"{path}: not readable; {_BRING}") from error
    if len(key) < 32:
        raise RaftError(f"{path}: cut off; {_BRING}")
    return key


def seal(folder: Path, key: bytes, *, step: int, rank: int, ranks: int) -> None:
    """Write `part-R.json` for all files in `folder`, a rank's part of a checkpoint, once all are there."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def measure(name: str) -> tuple[int, str]:
        with (folder / name).open("rb") as file:
            return (folder / name).stat().st_size, copy(file, key)

    part = Part(step, rank, ranks, dict(zip(names, _at_once(measure, names), strict=True)))
    (folder / part_name(rank)).write_text(part.pack(key))


def broken(
    files: dict[str, tuple[int, str]], key: bytes, opened: Callable[[str], BinaryIO], to: Path | None = None
) -> list[str]:
    """Those of `files` that are not what was sealed. `opened`: opens a file for reading. `to`: a folder into which they
    are copied on the way; none only reads them."""

    def is_broken(name: str) -> bool:
        with opened(name) as source:
            if to is None:
                mac = copy(source, key)
            else:
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                with writing(to / name), (to / name).open("wb") as target:
                    mac = copy(source, key, target)
        return not hmac.compare_digest(mac, files[name][1])

    names = sorted(files)
    return [name for name, bad in zip(names, _at_once(is_broken, names), strict=True) if bad]


def copy(source: BinaryIO, key: bytes, target: BinaryIO | None = None) -> str:
    """Read all of `source`, into `target` if there is one. Returns the HMAC-SHA-256 of its bytes."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    while block := source.read(_BLOCK):
        mac.update(block)
        if target is not None:
            target.write(block)
    return mac.hexdigest()


def part_name(rank: int) -> str:
    return f"part-{rank}.json"


def _at_once(work: Callable[[str], Any], names: list[str]) -> list[Any]:
    """`work` on each; hashing and reading leave Python's lock alone."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, names))
