"""A gate between two threads: one computes in a loop, another may come in between two turns of it.

Knows nothing about engines or weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """At most one side is in at a time; whoever knocks is let in at the loop's next turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._looping = False
        self._knocking = 0

    @contextmanager
    def loop(self) -> Iterator[None]:
        """The block is the loop: nobody else is in, but for the time of `let_in`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._knocking)
            self._looping = True
        try:
            yield
        finally:
            self._leave()

    @property
    def knocked(self) -> bool:
        """Whether somebody waits to be let in."""
        return self._knocking > 0

    def let_in(self) -> None:
        """Called by the loop between two turns: whoever has knocked comes in and leaves."""
        self._leave()
        with self._changed:
            self._changed.wait_for(lambda: not self._knocking)
            self._looping = True

    @contextmanager
    def enter(self) -> Iterator[None]:
        """The block of the other side: it begins when no loop runs or at the loop's next turn."""
        with self._changed:
            self._knocking += 1
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._looping)
            yield
        finally:
            with self._changed:
                self._knocking -= 1
                self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._looping = False
            self._changed.notify_all()
