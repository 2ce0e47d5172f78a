"""Weights through vLLM's transfer interface and Ray's object store: the engine answers as the new weights do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from changed_weights import changed_model, prompt_ids

from actors.engine.weight_sync import WeightVersion, pack
from actors.engine.weights import PackedWeights
from raft_ray.config import Dtype, ModelConfig, RolloutConfig, SyncBackend, SyncConfig
from raft_ray.models import TINY, load_chat, load_tokenizer, resolve

# Workers cannot import test modules: the probe travels as code.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Probe:
    """An engine and the means to change its weights, in a process of its own."""

    def __init__(self, folder: str) -> None:
        from actors.engine.vllm_engine import Engine
        from actors.engine.weight_sync import WeightReceiver

        model = ModelConfig(dtype=Dtype.float32)
        self.engine = Engine(
            folder, model, RolloutConfig(kv_cache_gib=0.125), context=256, weight_sync=SyncBackend.object_store
        )
        self.receiver = WeightReceiver("probe", self.engine, SyncConfig())

    def load(self, weights: WeightVersion) -> None:
        self.receiver.load_weights(weights)

    def generate(self, ids: list[int], temperature: float = 0.0, seed: int = 0) -> list[int]:
        (completion,) = self.engine.generate([ids], max_new_tokens=12, temperature=temperature, seed=seed)
        return completion.token_ids

    def stop_on(self, ids: list[int]) -> list[int]:
        """Returns those of before."""
        before, self.engine._stop_ids = self.engine._stop_ids, ids
        return before


@pytest.fixture(scope="module")
def probe(ray_cluster: None) -> Iterator[Any]:
    from actors.runtime.cluster import actor_options

    options = actor_options(role="rollout", num_cpus=1, num_gpus=0, threads=1)
    actor: Any = ray.remote(Probe).options(**options).remote(resolve(TINY))
    yield actor
    ray.kill(actor)


def greedy(model: Any, ids: list[int]) -> list[int]:
    eos = load_tokenizer(resolve(TINY), ModelConfig()).eos_token_id
    out = list(ids)
    for _ in range(12):
        with torch.no_grad():
            out.append(int(model(torch.tensor([out])).logits[0, -1].argmax()))
        if out[-1] == eos:
            break
    return out[len(ids) :]


def test_after_a_sync_the_engine_answers_as_the_new_weights_do(probe: Any) -> None:
    ids = prompt_ids()
    for version in (1, 2):
        model = changed_model(version)
        weights = pack(version, model.named_parameters())
        ray.get(probe.load.remote(weights), timeout=120)
        assert ray.get(probe.generate.remote(ids), timeout=120) == greedy(model, ids)


def test_a_completion_ends_with_the_first_token_that_is_a_stop(probe: Any) -> None:
    ids = prompt_ids()
    usual = ray.get(probe.generate.remote(ids), timeout=120)
    before = ray.get(probe.stop_on.remote([usual[2]]), timeout=120)
    assert before == load_chat(resolve(TINY), ModelConfig()).stop_ids
    assert ray.get(probe.generate.remote(ids), timeout=120) == usual[: usual.index(usual[2]) + 1]
    ray.get(probe.stop_on.remote(before), timeout=120)


def test_weights_that_are_not_the_learners_are_refused(probe: Any) -> None:
    weights = pack(3, changed_model(3).named_parameters())
    with pytest.raises(ray.exceptions.RayTaskError, match=r"probe on .*: weights of version 3"):
        ray.get(probe.load.remote(replace(weights, checksum=weights.checksum + 1)), timeout=120)
    with pytest.raises(ray.exceptions.RayTaskError, match="version 4"):
        ray.get(probe.load.remote(replace(weights, version=4)), timeout=120)


def test_a_version_that_lacks_a_parameter_is_refused(probe: Any) -> None:
    tensors = [(n, p) for n, p in changed_model(5).named_parameters() if "layers.1.mlp.down_proj" not in n]
    weights = pack(5, tensors)
    with pytest.raises(ray.exceptions.RayTaskError, match=r"lacks weights for .*down_proj"):
        ray.get(probe.load.remote(weights), timeout=120)


def test_the_same_seed_samples_the_same_tokens(probe: Any) -> None:
    weights = pack(6, changed_model(6).named_parameters())
    ray.get(probe.load.remote(weights), timeout=120)
    ids = prompt_ids()
    first, again, other = (ray.get(probe.generate.remote(ids, 1.0, seed), timeout=120) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_packing_keeps_every_tensor_bit_for_bit() -> None:
    model = changed_model(7)
    weights = PackedWeights.of(0, model.named_parameters())
    assert [name for name, _ in weights.tensors()] == [name for name, _ in model.named_parameters()]
    for (_, packed), (_, original) in zip(weights.tensors(), model.named_parameters(), strict=True):
        assert torch.equal(packed, original)
