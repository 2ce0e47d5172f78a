"""Hands a run's metrics to its trackers, each in a thread of its own, and remembers in the run folder what they have.

`RUN/trackers/NAME.json`: `id` of the run in the tracker, `last` step that it has, `evaluation` that it has. A tracker
that was away, or is new to a run, gets the steps that it lacks from `metrics.jsonl`; no step is logged twice.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from raft_ray.config import Config, Tracker
from raft_ray.errors import first_line
from raft_ray.files import write_whole
from raft_ray.json_files import read_object
from raft_ray.runs.trackers.checks import secrets
from raft_ray.runs.trackers.tracker import TrackedRun, TrackerClient, client, flatten

HANGS = 120.0
"""Seconds in one call after which a tracker hangs; W&B gives up a server after 90."""
PATIENCE = 30.0
"""Seconds that the end of a training waits for all trackers together."""


class Trackers:
    """The trackers of one training. No method raises for what a tracker does, nor waits for it, but `close`.

    Example:
        trackers = Trackers(config, run_dir)
        trackers.rewind(40, lines_of_steps_0_to_39)
        trackers.log({"step": 40, "loss": 0.5})
        trackers.close()
        print(trackers.failures())
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._followers = [Follower(each, config, run_dir) for each in dict.fromkeys(config.run.trackers)]
        self._told: set[str] = set()

    def rewind(self, step: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """The run goes on at `step`; `lines` are those of `metrics.jsonl` before it."""
        for follower in self._followers:
            follower.ask("rewind", step)
        for line in lines:
            self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`."""
        for follower in self._followers:
            follower.ask("log", line["step"], flatten(line))

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """The evaluation of the trained model."""
        for follower in self._followers:
            follower.ask("evaluated", dict(scores))

    def failures(self) -> list[str]:
        """A line for each tracker that has failed since this was asked last."""
        for follower in self._followers:
            follower.check()
        new = {each.name: each.failure for each in self._followers if each.failure and each.name not in self._told}
        self._told |= new.keys()
        return list(new.values())

    def close(self) -> None:
        """Let the trackers write what is on the way, for `PATIENCE` seconds at most."""
        until = time.monotonic() + PATIENCE
        for follower in self._followers:
            follower.ask("finish")
        for follower in self._followers:
            follower.join(until)


class Follower:
    """One tracker, with a thread that alone calls its client. Opens the client when there is something to log."""

    def __init__(self, tracker: Tracker, config: Config, run_dir: Path) -> None:
        self.name = tracker.value
        self.failure: str | None = None
        """Why it is off, as a line."""
        self._tracker, self._config, self._run_dir = tracker, config, run_dir
        self._path = run_dir / "trackers" / f"{self.name}.json"
        self._queue: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        self._since: float | None = None
        """When the call began that its client is in."""
        self._client: TrackerClient | None = None
        # A client that hangs must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{self.name}", daemon=True)
        self._thread.start()

    def ask(self, what: str, *arguments: Any) -> None:
        if self.failure is None:
            self._queue.put((what, arguments))

    def check(self) -> None:
        """Give up a client that hangs."""
        since = self._since
        if since is not None and (silent := time.monotonic() - since) > HANGS:
            self._fail(f"it has not answered for {silent:.0f} s")

    def join(self, until: float) -> None:
        """Wait for its end; one that does not come in time is given up."""
        if self.failure is None:
            self._thread.join(max(0.0, until - time.monotonic()))
            if self._thread.is_alive():
                self._fail(f"it has not finished within {PATIENCE:.0f} s")

    def _work(self) -> None:
        try:
            self._state = self._read_state()
            what = ""
            while what != "finish":
                what, arguments = self._queue.get()
                if self.failure is None:
                    self._since = time.monotonic()
                    getattr(self, f"_{what}")(*arguments)
                    self._since = None
        # Whatever a client raises, even to end the process, is no matter of the training's.
        except BaseException as error:
            self._fail(f"{type(error).__name__}: {first_line(error)}")
        finally:
            self._since = None

    def _rewind(self, step: int) -> None:
        kept = client(self._tracker).keeps(step, self._state["last"])
        if kept < self._state["last"]:
            self._finish()
            self._state |= {"last": kept, "evaluation": None}

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._state["last"]:
            self._opened().log(step, values)
            self._keep(last=step)

    def _evaluated(self, scores: Mapping[str, float]) -> None:
        if scores != self._state["evaluation"]:
            self._opened().evaluated(max(0, self._state["last"]), scores)
            self._keep(evaluation=scores)

    def _finish(self) -> None:
        if self._client is not None:
            self._client.finish()
            self._client = None

    def _opened(self) -> TrackerClient:
        if self._client is None:
            self._keep()
            run = TrackedRun.of(self._config, self._run_dir, self._state["id"])
            self._client = client(self._tracker)(run, self._state["last"] + 1)
        return self._client

    def _read_state(self) -> dict[str, Any]:
        if self._path.exists():
            return read_object(self._path)
        return {"id": uuid.uuid4().hex[:12], "last": -1, "evaluation": None}

    def _keep(self, **changes: Any) -> None:
        self._state |= changes
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(self._state))

    def _fail(self, why: str) -> None:
        for secret in secrets():
            why = why.replace(secret, "***")
        self.failure = self.failure or f"tracker {self.name} is off for the rest of this training: {why[:300]}"
