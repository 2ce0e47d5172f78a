"""Refuses trackers of which it is certain beforehand that they cannot work: no package, or no key.

Looks at no network. What it finds holds for the process that asks, and those with the same environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from raft_ray.config import Tracker
from raft_ray.errors import ConfigError

SECRETS: tuple[str, ...] = (
    "WANDB_API_KEY",
    "SWANLAB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
)
SECRETS += ("TRACKIO_WRITE_TOKEN", "TRACKIO_SERVER_URL", "MLFLOW_TRACKING_URI")
"""Environment variables whose values no line shows; the URIs may hold a password."""
_SQL = ("sqlite", "mysql", "postgresql", "mssql")


def check_trackers(trackers: Iterable[Tracker], where: str = "") -> None:
    """Refuse trackers whose package is not installed here or whose key is not in the environment. `where`: closes the
    message: of which process that is true. Raises `ConfigError`, which shows no key."""
    for tracker in trackers:
        for wrong in _wrong(tracker, os.environ):
            raise ConfigError(f"run.trackers={tracker.value}: {wrong}{where}")


def secrets() -> list[str]:
    """What no line may show, the longest first."""
    values = {os.environ.get(name, "") for name in SECRETS}
    return sorted((value for value in values if len(value) > 3), key=len, reverse=True)


def _wrong(tracker: Tracker, env: Mapping[str, str]) -> Iterator[str]:
    if tracker is not Tracker.tensorboard and find_spec(tracker.value) is None:
        yield f"the package is not installed; pip install 'raft-ray[{tracker.value}]'"
    if tracker is Tracker.wandb and env.get("WANDB_MODE") not in ("offline", "dryrun", "disabled"):
        yield from _missing(env, "WANDB_API_KEY", ", or WANDB_MODE=offline")
    if tracker is Tracker.swanlab:
        mode = env.get("SWANLAB_MODE")
        if mode not in ("offline", "local", "disabled"):
            yield from _missing(env, "SWANLAB_API_KEY", ", or SWANLAB_MODE=offline")
        if mode == "local" and find_spec("swanboard") is None:
            yield "SWANLAB_MODE=local needs swanboard; pip install 'swanlab[dashboard]', or set SWANLAB_MODE=offline"
    if tracker is Tracker.mlflow:
        yield from _missing(env, "MLFLOW_TRACKING_URI", " to a server, or to sqlite:////FOLDER/mlflow.db")
        if urlsplit(env["MLFLOW_TRACKING_URI"]).scheme.partition("+")[0] in _SQL and find_spec("sqlalchemy") is None:
            yield "MLFLOW_TRACKING_URI names a database; pip install 'raft-ray[mlflow]'"
    if tracker is Tracker.trackio:
        if env.get("TRACKIO_SPACE_ID"):
            yield from _missing(env, "HF_TOKEN", ", or unset TRACKIO_SPACE_ID to keep the metrics on this machine")
        elif "write_token=" not in (server := env.get("TRACKIO_SERVER_URL", "")) and server:
            yield from _missing(env, "TRACKIO_WRITE_TOKEN", ", or unset TRACKIO_SERVER_URL")


def _missing(env: Mapping[str, str], name: str, instead: str) -> Iterator[str]:
    if not env.get(name, "").strip():
        yield f"{name} is not set; set it in the environment{instead}"
