"""The way users of a cluster take: `ray start --head`, then `ray job submit`, with token authentication."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_status import status_of
from ray_head import Head, running_head


@pytest.fixture(scope="module")
def head(forks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("h")) as started:
        yield started


def test_the_dashboard_answers_nobody_without_the_token(head: Head) -> None:
    for path in ("/api/jobs/", "/api/v0/actors", "/api/cluster_status"):
        assert status_of(head.dashboard + path, None) == 401
        assert status_of(head.dashboard + path, "f" * 64) == 403
        assert status_of(head.dashboard + path, head.token) == 200


def test_a_submitted_job_runs_the_smoke_preset_to_its_report(head: Head, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = head.submit("run", "smoke", "--run-dir", str(run_dir), timeout=560)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert (run_dir / "model" / "model.safetensors").exists()
    evaluation = json.loads((run_dir / "eval.json").read_text())
    assert set(evaluation["methods"]) == {"base", "sft", "raft"}
    assert [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_job_with_a_bad_config_fails_with_one_line_and_exit_code_2(head: Head) -> None:
    result = head.submit("run", "smoke", "learner.lrr=1", timeout=300)
    assert result.returncode != 0
    assert "learner.lrr" in result.stdout
    assert "did you mean learner.lr" in result.stdout
    assert "exit code 2" in result.stdout
    assert "Traceback" not in result.stdout


def test_too_few_cpus_on_the_cluster_end_the_run_before_it_starts(head: Head, tmp_path: Path) -> None:
    result = head.submit("run", "smoke", "rollout.actors=40", "--run-dir", str(tmp_path / "run"), timeout=300)
    assert result.returncode != 0
    assert "the roles ask for 43 CPUs" in result.stdout
    assert "the cluster has 8" in result.stdout
