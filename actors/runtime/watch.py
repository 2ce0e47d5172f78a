"""What the driver does while the learners run: draws the progress, and looks after who looks after the others.

```
driver ── progress ──> PipelineActor        within limits of its own: rollout actors, teachers
       ── a call  ──> Ray Train's controller    its health checks: learners
```

One of the two that does not answer is killed. Ray starts the pipeline actor again, and the learners with it, from the
last checkpoint; without its controller the training ends, with a line that says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from actors.runtime.progress import Bars
from raft_ray.interrupts import interrupts
from raft_ray.printable import plain

SILENCE = 60.0
"""Seconds without an answer after which the pipeline actor hangs; at most `learner.timeout`."""
CONTROLLER_SILENCE = 300.0
"""The same of Ray Train's controller, which answers nothing while it places and starts the learners."""


@contextmanager
def repeated(look: Callable[[], None], every: float, name: str) -> Iterator[None]:
    """During the block a thread of this name calls `look` every so many seconds."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every):
            look()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        # Ray must not be ended under a call of its.
        thread.join(timeout=10)


class Pulse:
    """Calls a process again and again; one that does not answer in time is late.

    Args:
        ask: makes the call.
        limit: seconds.
        late: called with the seconds of silence; then the calls begin anew.
    """

    def __init__(self, ask: Callable[[], Any], limit: float, late: Callable[[float], None]) -> None:
        self._ask, self._limit, self._late = ask, limit, late
        self._call: Any = None
        self._since = 0.0
        self._patience = limit

    def look(self) -> Any:
        """The answer, if there is a new one. What answers with an error is mended by others."""
        if self._call is None:
            self._call, self._since = self._ask(), time.monotonic()
        ready, _ = ray.wait([self._call], timeout=0.1)
        silent = time.monotonic() - self._since
        if ready:
            self._call, self._patience = None, self._limit
            try:
                return ray.get(ready[0], timeout=self._limit)
            except ray.exceptions.RayError:
                return None
        if silent > self._patience:
            # What starts again answers nothing for a while.
            self._call, self._patience = None, max(self._limit, CONTROLLER_SILENCE)
            self._late(silent)
        return None


class Watch:
    """Looks at a method's pipeline actor and at the controller of its learners. `limit`: `learner.timeout`. `node`:
    this host, where both run."""

    def __init__(self, pipeline: Any, bars: Bars, phase: str, limit: float, node: str) -> None:
        self.trouble: list[str] = []
        """What was killed since it did not answer, for the message of a training that fails."""
        self._pipeline, self._bars, self._phase, self._node = pipeline, bars, phase, node
        hangs = partial(self._kill, pipeline, "the pipeline actor", no_restart=False)
        self._pulse = Pulse(lambda: pipeline.progress.remote(), min(limit, SILENCE), hangs)
        self._controller: Pulse | None = None
        self._told = 0
        """Notices of the pipeline's that were printed."""

    def controlled_by(self, controller: Any) -> None:
        """Ray Train's controller has started."""
        hangs = partial(self._kill, controller, "Ray Train's controller", no_restart=True)
        self._controller = Pulse(lambda: controller.get_state.remote(), CONTROLLER_SILENCE, hangs)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Watches from a thread of its own during the block."""

        def look() -> None:
            self._draw(self._pulse.look())
            if self._controller is not None:
                self._controller.look()

        with repeated(look, 0.4, "watch"):
            yield
        if interrupts.received is None:
            self._draw(ray.get(self._pipeline.progress.remote(), timeout=SILENCE))

    def _draw(self, progress: dict[str, Any] | None) -> None:
        if progress is not None:
            for text in progress["notices"][self._told :]:
                self._bars.console.print(f"[yellow]{plain(self._phase)}:[/] {plain(text)}", highlight=False)
            self._told = len(progress["notices"])
            self._bars.update(self._phase, progress["step"], progress["steps"], _note(progress["last"]))
            if going := progress.get("evaluating"):
                phase = f"{self._phase}: evaluation of step {going['step']}"
                self._bars.update(phase, going["done"], going["total"])

    def _kill(self, actor: Any, who: str, seconds: float, *, no_restart: bool) -> None:
        what = "killed" if no_restart else "killed, so that Ray starts it again"
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        line = f"{who} on {self._node} has not answered since {since} ({seconds:.0f} s): {what}"
        self.trouble.append(line)
        self._bars.console.print(f"[yellow]{plain(line)}[/]", highlight=False)
        ray.kill(actor, no_restart=no_restart)


def _note(last: dict[str, Any] | None) -> str:
    if last is None:
        return "engines and learners start"
    note = f"sft {last['sft_loss']:.3f}"
    if last.get("kl_loss") is not None:
        note += f"  kl {last['kl_loss']:.3f}  λ {last['lambda']:.2f}"
    if last.get("rehearsal_kl") is not None:
        note += f"  rehearsal {last['rehearsal_kl']:.3f}"
    if last.get("drift_mean") is not None:
        note += f"  drift {last['drift_mean']:.3f}"
    return note
