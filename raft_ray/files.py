"""Files that are there whole or not at all, disks that are full, and paths as users write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raft_ray.errors import RaftError


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a text file anew, in UTF-8: who reads it meanwhile, or after a death in between, finds the text before.
    `PATH.new` beside it is overwritten. `errors` is for lone surrogates, which JSON carries and UTF-8 cannot; as for
    `str.encode`. Raises `RaftError` where the file system does not take it."""
    new = path.with_name(f"{path.name}.new")
    with writing(path):
        new.write_text(text, encoding="utf-8", errors=errors)
        new.replace(path)


def home(path: str) -> Path:
    """`path` with `~` for the folder that it means; as it stands where that is nobody's, and nothing is there."""
    return Path(os.path.expanduser(path))


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Raise `RaftError`, which names `path` and the fix, for what the file system refuses in the block."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RaftError(
            f"{path}: cannot be written ({reason}); free space there or make it writable, then go on with --resume"
        ) from error
