"""The same seed gives the same run, and a run that is stopped and resumed gives it too, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_files import outcome

from raft_ray.config import Config
from raft_ray.errors import RaftError

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
    shutil.copytree(parts / "model", tmp_path / "shorter")
    resumed = make_config(parts, "learner.checkpoint_every=2", "learner.max_steps=4", "run.resume=true")
    run(resumed)
    assert outcome(parts) == outcome(whole)

    # Killed between the last metrics and the export; then the newest checkpoint was damaged, at the same length.
    shutil.rmtree(parts / "model")
    shutil.copytree(tmp_path / "shorter", parts / "model")
    newest = max((parts / "checkpoints").glob("checkpoint_0*"))
    weights = newest / "state" / "mp_rank_00_model_states.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    run(resumed)
    assert outcome(parts) == outcome(whole)
    assert newest.name not in {path.name for path in (parts / "checkpoints").iterdir()}

    # What cannot go on says so: other settings than the checkpoint's, and a record that cannot be read.
    shutil.rmtree(parts / "model")
    other = make_config(parts, "learner.checkpoint_every=2", "learner.max_steps=4", "run.resume=true", "learner.lr=0.5")
    with pytest.raises(RaftError, match=r"^learner\.lr=0\.5 \(was 0\.001\): not what the run's checkpoint of step 4"):
        run(other)
    spans = parts / "spans.jsonl"
    spans.write_text("{no span\n" + spans.read_text())
    with pytest.raises(RaftError, match=r"spans\.jsonl line 1: not JSON: .*; repair or delete it"):
        run(resumed)
    assert not (parts / "model").exists()
    spans.unlink()
    run(resumed)
    assert outcome(parts) == outcome(whole)
    assert not list(parts.glob("run.lock*"))
