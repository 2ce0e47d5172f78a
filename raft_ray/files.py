"""Files that are there whole or not at all. Knows nothing about what they hold."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a text file anew, in UTF-8: who reads it meanwhile, or after a death in between, finds the text before.

    Args:
        path: of the file; `PATH.new` beside it is overwritten.
        text: all of it.
        errors: what happens to lone surrogates, which JSON carries and UTF-8 cannot; as for `str.encode`.
    """
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8", errors=errors)
    new.replace(path)
