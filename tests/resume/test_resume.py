"""The same seed gives the same run, and a run that is stopped and resumed gives it too, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_files import outcome

from raft_ray.config import Config

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]


def run(config: Config) -> Path:
    from actors.run import train

    return train(config).parent


@pytest.fixture(scope="module")
def whole(undisturbed_run: Path) -> Path:
    return undisturbed_run


def test_the_same_seed_gives_the_same_run_bit_for_bit(whole: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    assert outcome(run(make_config(tmp_path / "again", "learner.max_steps=4"))) == outcome(whole)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    whole: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    parts = run(make_config(tmp_path / "parts", "learner.checkpoint_every=2", "learner.max_steps=2"))
    assert [line["step"] for line in outcome(parts)["metrics"]] == [0, 1]
    run(make_config(tmp_path / "parts", "learner.checkpoint_every=2", "learner.max_steps=4", "run.resume=true"))
    assert outcome(parts) == outcome(whole)
