"""A model says what it was trained with, and a resumed run takes no other for its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raft_ray import __version__
from raft_ray.config import settings
from raft_ray.config.resume import deciding
from raft_ray.errors import ConfigError
from raft_ray.runs.trained import FILE, Trained, read_trained

LIKE_BEFORE = ["data.train=private/train.jsonl", "model.date=2026-01-31"]


def goal(*overrides: str, steps: int = 6, rows: str = "same") -> Trained:
    return Trained.by(settings.load("raft", [*LIKE_BEFORE, *overrides]), steps, rows)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model of six steps."""
    goal().write(tmp_path)
    return tmp_path


def test_the_model_of_the_last_step_is_finished(model: Path) -> None:
    assert goal().is_finished(model)
    assert goal("learner.num_workers=7", "rollout.actors=2", "eval.samples=1", "run.storage=s3://b").is_finished(model)
    assert read_trained(model) == goal()


def test_the_model_of_an_earlier_shorter_run_is_not_finished(model: Path) -> None:
    assert not goal(steps=9).is_finished(model)


def test_without_a_model_or_its_origin_nothing_is_finished(tmp_path: Path) -> None:
    assert not goal().is_finished(tmp_path / "model")
    (tmp_path / "model").mkdir()
    assert not goal().is_finished(tmp_path / "model")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (goal("learner.lr=0.5", "distill.top_k=9"), r"^distill\.top_k, learner\.lr: the model in .* other values; put"),
        (goal(rows="other"), r"^data\.train: the model in .* was trained on other rows; put that back"),
        (goal(steps=3), r"^learner\.max_steps: the model in .* for 6 steps, the run would end after 3; "),
    ],
)
def test_a_model_of_something_else_is_refused(model: Path, now: Trained, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        now.is_finished(model)


def test_a_model_that_is_passed_on_tells_nothing_of_its_users_paths(model: Path) -> None:
    text = (model / FILE).read_text()
    assert "private" not in text
    said = json.loads(text)
    assert (said["steps"], said["rows"], said["version"]) == (6, "same", __version__)
    assert said["settings"].keys() == deciding(settings.load("raft", LIKE_BEFORE)).keys()
