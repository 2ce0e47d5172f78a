"""Adapters swapped in a running engine: it computes what merged weights do, and refuses what is not the learner's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from changed_adapter import adapted_model, merged_model, pack_adapter, pack_base
from changed_weights import prompt_ids

from actors.distill.probes import LOGPROB_ERROR
from actors.engine.weight_sync import WeightVersion, pack
from raft_ray.config import Dtype, LoraConfig, ModelConfig, RolloutConfig, SyncBackend, SyncConfig
from raft_ray.models import TINY, load_chat, resolve

# Workers cannot import test modules: the engine's actor travels as code.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
LORA = LoraConfig(rank=3, alpha=7, rslora=True)
TOKENS = 12
LIMIT = 300


class Served:
    """An engine that swaps adapters, in a process of its own."""

    def __init__(self, folder: str) -> None:
        from actors.engine.vllm_engine import Engine
        from actors.engine.weight_sync import WeightReceiver

        self.engine = Engine(
            folder,
            ModelConfig(dtype=Dtype.float32),
            RolloutConfig(kv_cache_gib=0.125),
            context=256,
            weight_sync=SyncBackend.object_store,
            adapter=LORA,
        )
        self.receiver = WeightReceiver("served", self.engine, SyncConfig())

    def load(self, weights: WeightVersion) -> int:
        self.receiver.load_weights(weights)
        return self.receiver.held()

    def held(self) -> int:
        return self.receiver.held()

    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        completions = self.engine.generate(prompts, max_new_tokens=TOKENS, temperature=0.0)
        return [completion.token_ids for completion in completions]

    def logprobs(self, prompt: list[int], response: list[int]) -> list[float]:
        return self.engine.logprobs(prompt, response)


@pytest.fixture(scope="module")
def served(ray_cluster: None) -> Iterator[Any]:
    from actors.runtime.cluster import actor_options

    options = actor_options(role="rollout", num_cpus=1, num_gpus=0, threads=1)
    actor: Any = ray.remote(Served).options(**options).remote(resolve(TINY))
    yield actor
    ray.kill(actor)


def prompts() -> list[list[int]]:
    """20 of them, with a part in common that an engine keeps."""
    return [[*prompt_ids(), *range(40 + number, 48 + 2 * number)] for number in range(20)]


def check_computes(served: Any, model: Any) -> None:
    """Greedy tokens are those of `model`, but where its first two are as likely as each other within rounding, and so
    are log-probabilities."""
    stops = load_chat(resolve(TINY), ModelConfig()).stop_ids
    answers = ray.get(served.generate.remote(prompts()), timeout=LIMIT)
    ties = 0
    for prompt, answer in zip(prompts(), answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2).values
        clear = (best[:, 0] - best[:, 1] > 1e-3).tolist()
        expected = logits.argmax(-1).tolist()
        assert all(got == want for got, want, sure in zip(answer, expected, clear, strict=True) if sure)
        assert len(answer) == TOKENS or answer[-1] in stops
        ties += clear.count(False)
        found = torch.tensor(ray.get(served.logprobs.remote(prompt, answer), timeout=LIMIT))
        right = logits.log_softmax(-1)[torch.arange(len(answer)), answer]
        assert (found - right).abs().max() < 1e-3 < LOGPROB_ERROR[False]
    assert ties < 5, "the model would decide too little"


def test_a_swapped_adapter_computes_what_the_merged_weights_do(served: Any) -> None:
    models = [adapted_model(seed, LORA) for seed in (1, 2)]
    base = pack_base(models[0])
    for version, model in enumerate(models, 1):
        assert ray.get(served.load.remote(pack_adapter(version, model, base)), timeout=LIMIT) == version
        check_computes(served, merged_model(model))
    whole = merged_model(models[0])
    with torch.no_grad():
        one, other = (model(torch.tensor([prompt_ids()])).logits for model in (whole, merged_model(models[1])))
    assert (one - other).abs().max() > 1, "a swap that does nothing would go unseen"


def test_an_adapter_that_is_not_the_learners_or_fits_no_layer_is_refused(served: Any) -> None:
    model = adapted_model(3, LORA)
    base = pack_base(model)
    right = pack_adapter(3, model, base)
    wrong = replace(right, checksum=right.checksum + 1)
    names = {name: torch.zeros(3, 64) for name in ["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"]}
    names |= {name.replace("lora_A", "lora_B"): torch.zeros(128, 3) for name in names}
    unknown = replace(pack(3, [*ray.get(right.packed).tensors(), *names.items()]), base=base)
    for weights, message in (
        (wrong, r"served on .*: weights of version 3"),
        (unknown, r"no layer model\.layers\.7\.mlp\.up_proj for the adapter; set sync\.adapter=merged"),
        (replace(right, version=4), "version 4"),
    ):
        with pytest.raises(ray.exceptions.RayTaskError, match=message):
            ray.get(served.load.remote(weights), timeout=LIMIT)
    assert ray.get(served.load.remote(right), timeout=LIMIT) == 3
    check_computes(served, merged_model(model))
