"""How a command ends on Ctrl-C (SIGINT) and on SIGTERM: in order with the first signal, at once with the second.

```
first signal ──> KeyboardInterrupt in the main thread ──> every `finally` on the way, one line, status 128 + signal
second, or `LIMIT` seconds later ──> the process ends where it stands, with the same status
```

The signal arrives as a `KeyboardInterrupt` in both cases, the one exception that Ray carries through its C++ code.
Processes of a local Ray end with this process, also where it ends at once: the kernel kills Ray's, they their workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT = 60.0
"""Seconds that ending in order may take."""


class Interrupts:
    """The signals that this process has been sent. There is one, `interrupts`."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal."""
        self._active = False
        self._said = False

    @property
    def status(self) -> int:
        """The exit status that tells of the signal, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """For the block signals end it as described. Elsewhere than in the main thread, or inside another such block,
        nothing happens."""
        if self._active or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._active, self._said = True, False
        self.install()
        threading.Thread(target=self._watch, args=(reader,), name="interrupts", daemon=True).start()
        try:
            yield
        finally:
            # After a signal they stay: a second one may come while the interpreter ends.
            if self.received is None:
                self._active = False
                signal.set_wakeup_fd(wakeup)
                for number, handler in before.items():
                    signal.signal(number, handler)
                writer.close()

    def install(self) -> None:
        """Take the signals back from libraries that have set handlers of their own (Ray does when it starts)."""
        if self._active and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Ignored ones stay so: a shell sets that for what runs in the background.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._raise)

    def arrived(self, number: int) -> KeyboardInterrupt:
        """Note a signal that a library has turned into something else; returns what to raise."""
        self.received = self.received or number
        return KeyboardInterrupt()

    def say(self) -> None:
        """The line for the user."""
        self._said = True
        print("interrupted; go on with --resume", file=sys.stderr, flush=True)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is None:
            raise self.arrived(number)

    def _watch(self, reader: socket.socket) -> None:
        """Sees signals also while the main thread is in code that does not return."""
        with reader:
            if not self._next(reader):
                return
            reader.settimeout(LIMIT)
            with contextlib.suppress(TimeoutError):
                self._next(reader)
        if not self._said:
            self.say()
        os._exit(self.status)

    def _next(self, reader: socket.socket) -> bool:
        """Waits for one of our signals; false where there will be none. The socket tells of every handled one."""
        while byte := reader.recv(1):
            if byte[0] in SIGNALS:
                return True
        return False


interrupts = Interrupts()
