"""Workers of stage 1 that hang: Ray Data waits for them without end, so the driver looks for signs of life.

worker ── beat ──> CacheActor <── silent? ── driver ── kill ──> worker, which Ray Data starts again
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.refine.workers import SILENCE

_log = logging.getLogger(__name__)


@contextmanager
def hung_workers_killed(cache: Any) -> Iterator[None]:
    """For the block a worker that has not been heard of for `SILENCE` seconds is killed, with a warning that names it.

    Args:
        cache: handle of the `CacheActor` that they tell.
    """
    done = threading.Event()

    def look() -> None:
        while not done.wait(SILENCE / 4):
            try:
                silent = ray.get(cache.silent.remote(SILENCE), timeout=SILENCE)
            except ray.exceptions.RayError:
                continue  # those who need the cache meet the same error
            for name, (seconds, (worker,)) in silent.items():
                if hangs(worker):
                    _log.warning("%s has been silent for %.0f s: killed, Ray Data starts it again", name, seconds)
                    ray.kill(worker, no_restart=False)

    thread = threading.Thread(target=look, name="refine-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def hangs(worker: Any) -> bool:
    """Whether a silent worker is still there: one that has ended answers a call with an error, at once."""
    ready, _ = ray.wait([worker.__ray_ready__.remote()], timeout=5)
    return not ready
