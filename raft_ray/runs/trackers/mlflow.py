"""MLflow: a run in the experiment `MLFLOW_EXPERIMENT_NAME` of the server or file that `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

# A folder was asked for by name; MLflow would rather have a database.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from raft_ray.runs.trackers.tracker import PROJECT, TrackedRun, TrackerClient

_ID = "raft_ray.id"
_BATCH, _LONGEST = 100, 6000
"""Parameters in a request, and characters in one, that MLflow takes."""


class Client(TrackerClient):
    """Found again by a tag; parameters cannot be changed, so a run has those that it began with."""

    def __init__(self, run: TrackedRun, first: int) -> None:
        self._client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([where], f"tags.`{_ID}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {_ID: run.id, "group": run.group}
        self._id = self._client.create_run(where, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._id, params=params[start : start + _BATCH])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._id)
