"""The way users of a cluster take: `ray start --head`, then `ray job submit`, with token authentication."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

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


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job") / "run"


@pytest.fixture(scope="module")
def jobs(head: Head, run_dir: Path) -> dict[str, CompletedProcess[str]]:
    """What three jobs that run side by side have come to."""
    arguments = {
        "good": ["--run-dir", str(run_dir)],
        "bad config": ["learner.lrr=1"],
        "too large": ["rollout.actors=40", "--run-dir", f"{run_dir}-too-large"],
    }
    with ThreadPoolExecutor() as pool:
        submitted = {
            name: pool.submit(head.submit, "run", "smoke", *own, timeout=560) for name, own in arguments.items()
        }
    return {name: job.result() for name, job in submitted.items()}


def test_a_submitted_job_runs_the_smoke_preset_to_its_report(
    jobs: dict[str, CompletedProcess[str]], run_dir: Path
) -> None:
    result = jobs["good"]
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert (run_dir / "model" / "model.safetensors").exists()
    evaluation = json.loads((run_dir / "eval.json").read_text())
    assert set(evaluation["methods"]) == {"base", "sft", "raft"}
    assert [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_job_with_a_bad_config_fails_with_one_line_and_exit_code_2(jobs: dict[str, CompletedProcess[str]]) -> None:
    result = jobs["bad config"]
    assert result.returncode != 0
    assert "learner.lrr" in result.stdout
    assert "did you mean learner.lr" in result.stdout
    assert "exit code 2" in result.stdout
    assert "Traceback" not in result.stdout


def test_too_few_cpus_on_the_cluster_end_the_run_before_it_starts(jobs: dict[str, CompletedProcess[str]]) -> None:
    result = jobs["too large"]
    assert result.returncode != 0
    assert "the roles ask for 43 CPUs" in result.stdout
    assert "the cluster has 8" in result.stdout
