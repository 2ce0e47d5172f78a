"""The way users of a cluster take: `ray start --head`, then `ray job submit`, with token authentication."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from http_status import status_of
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Head:
    """A running head node of the test's own."""

    dashboard: str
    token: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # Ray's sockets need a short path.
    folder = Path(tmp_path_factory.mktemp("h"))
    session = Path("/tmp") / f"raft-job-{os.getpid()}"
    token = "0123456789abcdef" * 4
    (folder / "token").write_text(token)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    port, dashboard = free_port(), free_port()
    process = subprocess.Popen(
        [
            str(BIN / "ray"),
            "start",
            "--head",
            "--block",
            f"--port={port}",
            "--node-ip-address=127.0.0.1",
            f"--dashboard-port={dashboard}",
            # Another cluster on this machine may have the default one, and without its agent no job starts.
            f"--dashboard-agent-listen-port={free_port()}",
            "--num-cpus=8",
            f"--temp-dir={session}",
            "--disable-usage-stats",
        ],
        env=environment,
        stdout=(folder / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            try:
                if status_of(f"{url}/api/version", token) == 200:
                    break
            except OSError:
                pass
            assert process.poll() is None, (folder / "head.log").read_text()
            time.sleep(0.5)
        else:
            raise AssertionError("the head's dashboard did not come up")
        yield Head(url, token, environment | {"RAY_ADDRESS": url})
    finally:
        # The whole session of processes that `ray start --block` made, and nothing else.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(session, ignore_errors=True)


def test_the_dashboard_answers_nobody_without_the_token(head: Head) -> None:
    for path in ("/api/jobs/", "/api/v0/actors", "/api/cluster_status"):
        assert status_of(head.dashboard + path, None) == 401
        assert status_of(head.dashboard + path, "f" * 64) == 403
        assert status_of(head.dashboard + path, head.token) == 200


def no_agent_yet(result: subprocess.CompletedProcess[str]) -> bool:
    """The dashboard answers before the process that starts jobs is there."""
    return result.returncode != 0 and "No available agent to submit job" in result.stdout + result.stderr


@retry(
    retry=retry_if_result(no_agent_yet),
    wait=wait_fixed(2),
    stop=stop_after_delay(120),
    retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
)
def submit(head: Head, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of `raft-ray run smoke` with further arguments, followed to its end."""
    return subprocess.run(
        [
            str(BIN / "ray"),
            *("job", "submit", "--working-dir", ".", "--"),
            *("python", "-m", "raft_ray", "run", "smoke", *arguments),
        ],
        env=head.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_a_submitted_job_runs_the_smoke_preset_to_its_report(head: Head, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = submit(head, "--run-dir", str(run_dir), timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert (run_dir / "model" / "model.safetensors").exists()
    evaluation = json.loads((run_dir / "eval.json").read_text())
    assert set(evaluation["methods"]) == {"base", "sft", "raft"}
    assert [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_job_with_a_bad_config_fails_with_one_line_and_exit_code_2(head: Head) -> None:
    result = submit(head, "learner.lrr=1", timeout=120)
    assert result.returncode != 0
    assert "learner.lrr" in result.stdout
    assert "did you mean learner.lr" in result.stdout
    assert "exit code 2" in result.stdout
    assert "Traceback" not in result.stdout


def test_too_few_cpus_on_the_cluster_end_the_run_before_it_starts(head: Head, tmp_path: Path) -> None:
    result = submit(head, "rollout.actors=40", "--run-dir", str(tmp_path / "run"), timeout=120)
    assert result.returncode != 0
    assert "the roles ask for 43 CPUs" in result.stdout
    assert "the cluster has 8" in result.stdout
