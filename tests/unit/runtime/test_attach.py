"""`raft-ray status` and `scale` find what trains in a run folder, wherever in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.runtime.attach import find
from raft_ray.errors import RaftError


@pytest.mark.parametrize("where", [".", "methods/sft", "methods/raft/lr=0.0001/seed0"])
def test_a_runs_a_baselines_and_a_comparisons_training_is_found(where: str, tmp_path: Path) -> None:
    record = tmp_path / where / "cluster.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("{}")
    assert find(tmp_path) == record


def test_a_folder_in_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RaftError, match="nothing trains in this run folder at the moment"):
        find(tmp_path)
