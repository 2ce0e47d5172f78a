"""The endpoint, a judge and all of stage 1 against a real vLLM server on loopback, with the embedded model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from http_status import free_port, status_of
from refine_runs import make_config, refine, summary

from raft_ray import models
from raft_ray.config import RefineModelConfig, SimilarityOn
from raft_ray.config.precision import of_cpu
from raft_ray.errors import ConfigError
from raft_ray.refine.endpoint import Endpoint
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.judges import SCORES, Case, LlmJudge

LONGEST_START = 300.0
NAME = "smollm2"
CASES = [
    Case(f"What is the symbol of {name}?", symbol, f"The symbol of {name} is {symbol}.")
    for name, symbol in [("gold", "Au"), ("iron", "Fe"), ("tin", "Sn"), ("neon", "Ne"), ("zinc", "Zn"), ("lead", "Pb")]
]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    options = {
        "model": models.resolve(models.EMBEDDED),
        "served-model-name": NAME,
        "host": "127.0.0.1",
        "port": port,
        "dtype": of_cpu().value,
        "max-model-len": 1024,
    }
    # `vllm serve` by its module: the command looks for a package of another name than the CPU build has.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", "--max-num-seqs", "8"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # More would spin while another process has a core.
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*command, *(str(word) for name, value in options.items() for word in (f"--{name}", value))],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # Its engine is a process of its own, in the same group.
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LONGEST_START
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if status_of(url, None) == 200:
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def endpoint(base_url: str, **changes: Any) -> Endpoint:
    values = {"base_url": base_url, "model": NAME, "retries": 1, "timeout": 120.0}
    return Endpoint(NAME, RefineModelConfig(**(values | changes)))


def asks(*texts: str, sample_index: int = 0) -> list[Request]:
    return [Request([{"role": "user", "content": text}], sample_index) for text in texts]


def test_a_model_that_is_held_to_the_schema_gives_scores_and_one_that_is_not_does_not(base_url: str) -> None:
    model = endpoint(base_url)
    judge = LlmJudge(NAME, model, "{prompt} {answer} {candidate}", max_new_tokens=256)
    scores = judge.score(CASES)
    given = [score for score in scores if score is not None]
    assert given
    assert set(given) <= set(SCORES)
    assert judge.failures == ({"truncated": len(CASES) - len(given)} if len(given) < len(CASES) else {})

    def free(asked: Any, **options: Any) -> list[Completion]:
        return model(asked, **(options | {"schema": None}))

    free.identity = NAME  # type: ignore[attr-defined]
    unheld = LlmJudge(NAME, free, "{prompt} {answer} {candidate}", max_new_tokens=30)  # type: ignore[arg-type]
    assert unheld.score(CASES) == [None] * len(CASES)


def test_the_same_asks_and_seed_give_the_same_texts(base_url: str) -> None:
    model = endpoint(base_url, concurrency=1)

    def sample(seed: int, sample_index: int = 0) -> list[str]:
        options = {"temperature": 1.0, "max_new_tokens": 8, "seed": seed}
        return [generation.text for generation in model(asks("gold", "iron", sample_index=sample_index), **options)]

    first = sample(1)
    assert sample(1) == first
    assert sample(2) != first
    assert sample(1, sample_index=1) != first


def test_limits_of_tokens_and_context_are_told(base_url: str) -> None:
    model = endpoint(base_url)
    short, long = model(asks("gold", "gold " * 1200), temperature=0.0, max_new_tokens=5, seed=0)
    assert (short.truncated, short.output_tokens, short.too_long) == (True, 5, False)
    assert long == Completion("", too_long=True)


def test_an_unknown_model_is_refused_in_the_servers_words(base_url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"refine\.models\.smollm2\.model: .*HTTP 404: The model `other` does not exist"
    ):
        endpoint(base_url, model="other")(asks("gold"), temperature=0.0, max_new_tokens=5, seed=0)


@pytest.mark.usefixtures("ray_cluster")
def test_stage_1_with_every_model_behind_the_server(base_url: str, tmp_path: Path) -> None:
    config = make_config(
        tmp_path / "run",
        [(case.question, case.gold) for case in CASES],
        models.EMBEDDED,
        rewriter="server",
        fuser="server",
        judges=["embedding", "server"],
        models={"server": RefineModelConfig(base_url=base_url, model=NAME, concurrency=4, output_cost=1e6)},
        similarity_on=SimilarityOn.question_answer,
        tau=0.6,
        attempts=3,
        candidates=1,
        rounds=1,
        max_new_tokens=48,
    )
    rows = refine(config)
    assert [row["prompt"] for row in rows] == [case.question for case in CASES]
    verdicts = [
        score["score"]
        for row in rows
        for each in row["candidates"]
        for score in each["scores"]
        if score["judge"] == "server"
    ]
    assert [verdict for verdict in verdicts if verdict is not None]
    found = summary(config)
    assert found["accepted"] == sum(row["accepted"] for row in rows) > 0
    assert found["judge_failures"] == ({"server": verdicts.count(None)} if None in verdicts else {})
    assert set(found["roles"]) == {"rewriter server", "fuser server", "judge server"}
    spent = found["models"]["server"]
    assert (spent["failed"], spent["cost"]) == (0, spent["output_tokens"])
    assert all(0 < role["asks"] < role["input_tokens"] for role in found["roles"].values())
