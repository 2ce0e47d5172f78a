"""Foreign text (rows, file names, what models and programs said) made harmless for terminals and one-line errors."""

from __future__ import annotations

import re
from pathlib import Path

_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (ANSI sequences begin with one), line separators, changes of direction, halves of pairs."""


_hidden: dict[str, str] = {}
_LEAST = 4


def hide(value: str, instead: str) -> None:
    """From now on print `instead` where `value` stands. Paths that exist are no secrets, nor are a few characters."""
    if len(value) >= _LEAST:
        _hidden[value] = instead


def printable(text: str) -> str:
    """`text` with every character that would act on a terminal, or cannot be written, as its escape; newlines stay.
    What is hidden (`hide`) is replaced."""
    for value in sorted((value for value in _hidden if value in text), key=len, reverse=True):
        if not Path(value).exists():
            text = text.replace(value, _hidden[value])
    return _HARMFUL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`text` on one line, printable."""
    return printable(" ".join(text.split()))


def plain(text: object) -> str:
    """`text` printable and, in rich's markup, only text: square brackets style nothing."""
    from rich.markup import escape

    return escape(printable(str(text)))
