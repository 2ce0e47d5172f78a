"""A Ray cluster of a test's own, with token authentication, for jobs that are submitted to it as users do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from http_status import free_port, read_json, status_of
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass
class Head:
    """A running head node."""

    dashboard: str
    token: str
    environment: dict[str, str]

    def submit(
        self, *arguments: str, timeout: float, env_vars: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of `raft-ray` with these arguments and variables in the job, followed to its end."""
        command = [str(BIN / "ray"), "job", "submit", "--working-dir", "."]
        command += ["--runtime-env-json", json.dumps({"env_vars": dict(env_vars or {})})]
        command += ["--", "python", "-m", "raft_ray", *arguments]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
            )

        patient = retry(
            retry=retry_if_result(_no_agent_yet),
            wait=wait_fixed(2),
            stop=stop_after_delay(120),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        return patient(run)()

    def driver_pid(self) -> int:
        """The process of the one job that runs."""
        jobs = read_json(f"{self.dashboard}/api/jobs/", self.token)
        (pid,) = [job["driver_info"]["pid"] for job in jobs if job["status"] == "RUNNING"]
        return int(pid)


def _no_agent_yet(result: subprocess.CompletedProcess[str]) -> bool:
    """The dashboard answers before the process that starts jobs is there."""
    return result.returncode != 0 and "No available agent to submit job" in result.stdout + result.stderr


@contextmanager
def running_head(folder: Path) -> Iterator[Head]:
    """`ray start --head` with 8 logical CPUs for the time of the block; its token and log go into `folder`.

    Its workers are forks of the test process's server (`forked.server`).
    """
    # Ray's sockets need a short path.
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
            sys.executable,
            str(ROOT / "tests" / "forked" / "server.py"),
            "ray.scripts.scripts",
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
