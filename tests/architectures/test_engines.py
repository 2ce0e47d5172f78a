"""Every architecture: a vLLM engine finds likely what the learner does, with each way of getting weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_adapter import pack_adapter, pack_base
from huggingface_hub import save_torch_state_dict

from actors.engine.vllm_engine import Engine
from actors.engine.weight_sync import WeightReceiver, WeightVersion, pack
from actors.engine.weights import full_tensors
from raft_ray import models
from raft_ray.config import Dtype, LoraConfig, ModelConfig, RolloutConfig, SyncBackend, SyncConfig
from raft_ray.errors import ModelError, RaftError
from raft_ray.models.adapters import add_adapter

from .models import CONFIGS, change, write_model

FLOAT32 = ModelConfig(dtype=Dtype.float32)
CONTEXT = 256
ROUNDING = 2e-3
"""Nats."""
PROMPT, RESPONSE = list(range(40, 80)), list(range(300, 340))
LORA = LoraConfig(rank=4, alpha=8)
EXPERTS = ("qwen3moe", "glm4moe", "gptoss")
ENGINES = [name for name in sorted(CONFIGS) if name not in ("phi", "bloom", "plain")]


@pytest.fixture
def make_engine(ray_cluster: None) -> Iterator[Callable[..., Engine]]:
    """Engines of the tests' own process, one at a time."""
    from vllm.distributed import cleanup_dist_env_and_memory

    made: list[Engine] = []

    def end() -> None:
        made.clear()
        gc.collect()
        cleanup_dist_env_and_memory()

    def make(folder: Path, kv_cache_gib: float = 0.125, **more: Any) -> Engine:
        end()
        resources = RolloutConfig(kv_cache_gib=kv_cache_gib)
        made.append(Engine(str(folder), FLOAT32, resources, context=CONTEXT, **more))
        return made[0]

    yield make
    end()


@dataclass
class Case:
    """A model and what it computes with several weights, all made before vLLM may change transformers' classes."""

    folder: Path
    own: torch.Tensor
    """Log-probabilities of `RESPONSE` under the folder's weights."""
    versions: list[tuple[WeightVersion, torch.Tensor]]
    """Weights as they are sent, and the log-probabilities under them."""
    exported: Path
    """A folder of the last version."""
    adapters: list[tuple[WeightVersion, torch.Tensor]]
    """The same with an adapter on the last version, apart from it."""


@pytest.fixture(scope="module", params=ENGINES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Case:
    folder, exported = (tmp_path_factory.mktemp(f"{kind}-{request.param}") for kind in ("model", "exported"))
    write_model(str(request.param), folder)
    model = models.load_model(str(folder), FLOAT32).eval()
    own = logprobs(model)
    versions = []
    for version in (0, 1, 2):
        change(model, 0.05 * version)
        versions.append((pack(version, full_tensors(model, 0)), logprobs(model)))
    state = dict(full_tensors(model, 0))
    save_torch_state_dict(models.checkpoint_tensors(str(folder), FLOAT32, state), exported)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (exported / file.name).write_bytes(file.read_bytes())
    add_adapter(model, LORA, seed=0)
    base, adapters = pack_base(model), []
    for version in (3, 4):
        with torch.no_grad():
            for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
                parameter.copy_(0.2 * torch.randn_like(parameter))
        adapters.append((pack_adapter(version, model, base), logprobs(model)))
    return Case(folder, own, versions, exported, adapters)


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPT, *RESPONSE]]), use_cache=False).logits[0].float()
    return logits[len(PROMPT) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(RESPONSE)[:, None])[:, 0]


def error(engine: Engine, own: torch.Tensor) -> float:
    """The largest difference of the log-probabilities of `RESPONSE` between an engine and a model."""
    return float((torch.tensor(engine.logprobs(PROMPT, RESPONSE)) - own).abs().max())


def test_an_engine_that_swaps_adapters_computes_what_the_learner_does_or_refuses_experts(
    case: Case, make_engine: Callable[..., Engine]
) -> None:
    # The first of a case's tests: such an engine makes the model on shapes, before vLLM changes transformers' class.
    assert (case.adapters[0][1] - case.adapters[1][1]).abs().max() > 0.3
    packs_experts = any(name in case.folder.name for name in EXPERTS)
    with pytest.raises(ModelError, match="has experts") if packs_experts else nullcontext():
        engine = make_engine(case.folder, weight_sync=SyncBackend.object_store, adapter=LORA)
        receiver = WeightReceiver("engine", engine, SyncConfig())
        for weights, own in case.adapters:
            receiver.load_weights(weights)
            assert error(engine, own) < ROUNDING, f"version {weights.version}"


def test_after_each_sync_an_engine_computes_what_the_learner_does(
    case: Case, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(case.folder, weight_sync=SyncBackend.object_store)
    receiver = WeightReceiver("engine", engine, SyncConfig())
    # It starts with weights of its own, so that nothing passes for what an update should have brought.
    assert error(engine, case.own) > 0.3
    for weights, own in case.versions:
        with refused(case):
            receiver.load_weights(weights)
            assert error(engine, own) < ROUNDING, f"version {weights.version}"


def test_a_model_and_its_export_are_the_same_to_an_engine_that_reloads(
    case: Case, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(case.folder)
    assert error(engine, case.own) < ROUNDING
    with refused(case):
        engine.load_weights(str(case.exported))
        assert error(engine, case.versions[-1][1]) < ROUNDING
        engine.load_weights(str(case.folder))
        assert error(engine, case.own) < ROUNDING


def test_an_architecture_whose_adapters_vllm_does_not_serve_is_refused_when_its_engine_starts(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    folder = write_model("bloom", tmp_path)
    with pytest.raises(RaftError, match=r"^sync\.adapter=hot: .* does not support LoRA.*; set sync\.adapter=merged$"):
        make_engine(folder, weight_sync=SyncBackend.object_store, adapter=LORA)


def refused(case: Case) -> AbstractContextManager[Any]:
    """GPT-OSS's experts are read once by vLLM, and the engine says so."""
    if "gptoss" in case.folder.name:
        return pytest.raises(RaftError, match="does not take up new weights for the experts")
    return nullcontext()


def test_a_cache_too_small_for_the_context_is_refused_by_its_key(
    make_engine: Callable[..., Engine], tiny_model: Path
) -> None:
    with pytest.raises(RaftError, match=r"^rollout\.kv_cache_gib=0\.0001: too little for \d+ tokens; raise it"):
        make_engine(tiny_model, kv_cache_gib=0.0001)
