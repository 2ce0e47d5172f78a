"""TensorBoard: event files in `RUN/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from torch.utils.tensorboard import SummaryWriter

from raft_ray.runs.trackers.tracker import TrackedRun, TrackerClient


class Client(TrackerClient):
    """Scalars are float32 there."""

    @classmethod
    def keeps(cls, step: int, last: int) -> int:
        return min(last, step - 1)

    def __init__(self, run: TrackedRun, first: int) -> None:
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first)
        if first == 0:
            # Markdown shows an indented block as it stands.
            text = yaml.safe_dump(dict(run.config), sort_keys=False)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()
