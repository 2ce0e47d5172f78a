"""What tensor parallelism changes, as far as it can be seen without GPUs: resources, and whose generator is seeded."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from actors.engine.vllm_engine import Engine, FairLock, seed_worker
from actors.evaluate.evaluation import answering_options
from raft_ray.config import Config


def test_the_evaluation_asks_for_as_many_gpus_as_a_rollout_actor() -> None:
    config = Config()
    config.rollout.tensor_parallel, config.rollout.num_gpus = 4, 4
    assert answering_options(config)["num_gpus"] == 4


def test_a_call_of_an_engine_seeds_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes: dict[str, Any] = {name: ModuleType(name) for name in ("vllm", "vllm.sampling_params")}
    fakes["vllm"].SamplingParams = fakes["vllm"].TokensPrompt = SimpleNamespace
    fakes["vllm.sampling_params"].StructuredOutputsParams = SimpleNamespace
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    calls: list[tuple[Any, tuple[int, ...]]] = []

    def generate(*_: Any, **__: Any) -> list[Any]:
        assert calls, "it generates before its workers are seeded"
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1], finish_reason="stop")])]

    engine = Engine.__new__(Engine)
    engine._turns, engine._stale_prefixes = FairLock(), False
    engine._stop_ids, engine._lora_request = [2], None
    fake: Any = SimpleNamespace(collective_rpc=lambda function, args: calls.append((function, args)), generate=generate)
    engine.llm = fake
    engine.generate([[1]], max_new_tokens=1, temperature=1.0, seed=17)
    assert calls == [(seed_worker, (17,))]
    seed_worker(None, 17)
    assert torch.initial_seed() == 17
