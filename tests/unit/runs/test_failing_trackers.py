"""A tracker that fails is off, with one line; the training neither stops nor waits."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raft_ray.config import Config, Tracker
from raft_ray.distill.order import RowOrder
from raft_ray.errors import ConfigError
from raft_ray.runs.records import RunRecords
from raft_ray.runs.trackers import Trackers, check_trackers, flatten, followed
from raft_ray.runs.trackers.tracker import TrackedRun, TrackerClient

STEPS = 4
KEY = "secret-that-nobody-may-read"


class Fake(TrackerClient):
    """Keeps what it gets, and does what a test wants of it at a step."""

    logged: list[int]
    hung: threading.Event

    def __init__(self, run: TrackedRun, first: int) -> None:
        self.at(-1)

    def at(self, step: int) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.at(step)
        self.logged.append(step)

    def finish(self) -> None:
        self.at(STEPS)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    kind = type("kind", (Fake,), {"logged": [], "hung": threading.Event()})
    genuine = followed.client
    monkeypatch.setattr(followed, "client", lambda name: kind if name is Tracker.wandb else genuine(name))
    return kind


def trained(run: Path, first: int = 0) -> Trackers:
    """A training's steps, with TensorBoard and the fake."""
    config = Config()
    config.run.trackers = [Tracker.wandb, Tracker.tensorboard]
    trackers = Trackers(config, run)
    records = RunRecords(run, RowOrder(2 * STEPS, 2, 1, 0), trackers)
    records.rewind(first)
    for step in range(first, STEPS):
        records.add(step, [], {"loss": 0.5, "seconds": {}})
    records.close()
    return trackers


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.parametrize("step", [-1, 2, STEPS])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError(f"key {KEY}\nis wrong"), SystemExit(1)]
)
def test_a_tracker_that_raises_is_off_and_the_others_go_on(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    def fails(_: Fake, at: int) -> None:
        if at == step:
            raise error

    monkeypatch.setattr(fake, "at", fails)
    trackers = trained(tmp_path)
    (line,) = trackers.failures()
    assert line.startswith(f"tracker wandb is off for the rest of this training: {type(error).__name__}")
    assert KEY not in line
    assert len(line.splitlines()) == 1
    assert trackers.failures() == []
    assert fake.logged == list(range(STEPS))[: step if step >= 0 else 0]
    assert [each["step"] for each in lines(tmp_path)] == list(range(STEPS))
    assert json.loads((tmp_path / "trackers" / "tensorboard.json").read_text())["last"] == STEPS - 1

    # Once it works again it gets what it lacks.
    monkeypatch.setattr(fake, "at", Fake.at)
    assert trained(tmp_path, STEPS - 1).failures() == []
    assert fake.logged == list(range(STEPS))


def test_a_tracker_that_hangs_is_given_up(fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "PATIENCE", 0.2)
    monkeypatch.setattr(fake, "at", lambda _, step: step == 2 and fake.hung.wait())
    trackers = trained(tmp_path)
    assert trackers.failures() == ["tracker wandb is off for the rest of this training: it has not finished within 0 s"]
    assert [each["step"] for each in lines(tmp_path)] == list(range(STEPS))
    fake.hung.set()


def test_a_tracker_that_hangs_in_the_middle_is_told_before_the_end(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = threading.Event()
    monkeypatch.setattr(followed, "HANGS", 0.0)
    monkeypatch.setattr(fake, "at", lambda _, step: called.set() or fake.hung.wait())
    config = Config()
    config.run.trackers = [Tracker.wandb]
    trackers = Trackers(config, tmp_path)
    trackers.rewind(0, [])
    trackers.log({"step": 0, "loss": 0.5})
    assert called.wait(60)
    (line,) = trackers.failures()
    assert line.startswith("tracker wandb is off for the rest of this training: it has not answered for ")
    trackers.close()
    fake.hung.set()


def test_metrics_are_flattened_by_one_rule() -> None:
    line = {"step": 7, "loss": 0.5, "kl_loss": None, "rows": 8, "seconds": {"wait": 1.5}, "staleness_rows": {"0": 8}}
    assert flatten(line) == {"loss": 0.5, "rows": 8, "seconds/wait": 1.5, "staleness_rows/0": 8}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("study", "study-raft-seed5"),
        ("study/methods/sft", "study-sft-seed5"),
        ("study/methods/opd/beta/seed5", "study-opd-beta-seed5"),
    ],
)
def test_every_training_of_a_run_folder_has_a_name_of_its_own_in_one_group(
    tmp_path: Path, folder: str, name: str
) -> None:
    config = Config()
    config.run.seed = 5
    run = TrackedRun.of(config, tmp_path / folder, "id")
    assert (run.name, run.group) == (name, "study")


@pytest.mark.parametrize(
    ("tracker", "environment", "message"),
    [
        ("wandb", {}, "WANDB_API_KEY is not set; set it in the environment, or WANDB_MODE=offline"),
        ("wandb", {"WANDB_MODE": "online"}, "WANDB_API_KEY is not set"),
        ("wandb", {"WANDB_MODE": "offline"}, None),
        ("wandb", {"WANDB_API_KEY": KEY}, None),
        ("swanlab", {}, "SWANLAB_API_KEY is not set; set it in the environment, or SWANLAB_MODE=offline"),
        ("swanlab", {"SWANLAB_MODE": "local"}, "SWANLAB_MODE=local needs swanboard"),
        ("swanlab", {"SWANLAB_MODE": "offline"}, None),
        ("mlflow", {}, "MLFLOW_TRACKING_URI is not set; set it in the environment to a server, or to sqlite:"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "https://mlflow.example"}, None),
        ("mlflow", {"MLFLOW_TRACKING_URI": "sqlite:///a.db"}, "MLFLOW_TRACKING_URI names a database; pip install"),
        ("trackio", {}, None),
        ("trackio", {"TRACKIO_SPACE_ID": "me/space"}, "HF_TOKEN is not set"),
        ("trackio", {"TRACKIO_SERVER_URL": "https://trackio.example"}, "TRACKIO_WRITE_TOKEN is not set"),
        ("tensorboard", {}, None),
    ],
)
def test_what_is_certain_beforehand_is_refused(
    monkeypatch: pytest.MonkeyPatch, tracker: str, environment: dict[str, str], message: str | None
) -> None:
    for name in ("WANDB", "SWANLAB", "MLFLOW", "TRACKIO"):
        for end in ("API_KEY", "MODE", "TRACKING_URI", "SPACE_ID", "SERVER_URL", "WRITE_TOKEN"):
            monkeypatch.delenv(f"{name}_{end}", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    installed = {"wandb", "mlflow", "trackio", "swanlab"}
    monkeypatch.setattr("raft_ray.runs.trackers.checks.find_spec", lambda name: name if name in installed else None)
    if message is None:
        check_trackers([Tracker(tracker)])
    else:
        with pytest.raises(ConfigError, match=f"^run.trackers={tracker}: {message}"):
            check_trackers([Tracker(tracker)])
    if tracker != "tensorboard":
        installed.clear()
        missing = rf"run.trackers={tracker}: the package is not installed; pip install 'raft-ray\[{tracker}\]' \(here\)"
        with pytest.raises(ConfigError, match=missing):
            check_trackers([Tracker(tracker)], " (here)")
