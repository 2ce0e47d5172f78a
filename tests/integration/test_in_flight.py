"""New weights in the middle of a rollout batch: vLLM pauses, keeps what it is writing, goes on with the new ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from changed_adapter import adapted_model, merged_model, pack_adapter, pack_base
from changed_weights import changed_model, prompt_ids
from listener import Listener, Said, once

from actors.distill.rollout import RolloutActor
from actors.engine import weight_sync
from actors.engine.weight_sync import WeightVersion
from actors.runtime.cluster import actor_options
from raft_ray.config import Config, LoraConfig
from raft_ray.distill.order import SampleId
from raft_ray.distill.trajectory import RolloutBatch, Trajectory
from raft_ray.models import TINY, resolve
from raft_ray.models.prompts import EncodedRow

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]
Publish = Callable[[], tuple[list[Any], list[WeightVersion]]]
LIMIT = 300
TOKENS = 40
LORA = LoraConfig(rank=4, alpha=32)
HOT = ("learner.lora.rank=4", "learner.lora.alpha=32", "sync.adapter=hot")


@pytest.fixture(autouse=True)
def workers_get_this_module_by_value() -> Iterator[None]:
    """They cannot import it."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def mixed(models: list[Any], starts: list[int], prompt: list[int], count: int) -> list[int]:
    """Greedy tokens by transformers: `models[i]` computes from token `starts[i]` on; keys and values stay."""
    past, ids, out = None, torch.tensor([prompt]), []
    for token in range(count):
        model = models[max(i for i, start in enumerate(starts) if start <= token)]
        with torch.no_grad():
            result = model(ids, past_key_values=past, use_cache=True)
        past, ids = result.past_key_values, result.logits[:, -1:].argmax(-1)
        out.append(int(ids))
    return out


def whole_weights() -> tuple[list[Any], list[WeightVersion]]:
    """Two versions: what the model is with each, and as they are published."""
    models = [changed_model(seed) for seed in (1, 2)]
    return models, [weight_sync.pack(v, model.named_parameters()) for v, model in enumerate(models)]


def adapters_alone() -> tuple[list[Any], list[WeightVersion]]:
    adapted = [adapted_model(seed, LORA) for seed in (1, 2)]
    base = pack_base(adapted[0])
    return [merged_model(model) for model in adapted], [pack_adapter(v, m, base) for v, m in enumerate(adapted)]


@pytest.mark.parametrize(("publish", "keys"), [(whole_weights, ()), (adapters_alone, HOT)])
def test_a_trajectory_crosses_an_update_and_says_which_tokens_came_from_which_version(
    publish: Publish, keys: tuple[str, ...], tmp_path: Path, make_config: MakeConfig
) -> None:
    models, packed = publish()
    prompt = prompt_ids()
    config = make_config(
        tmp_path,
        "sync.max_staleness=1",
        "sync.in_flight=true",
        "model.dtype=float32",
        "rollout.temperature=0",
        f"rollout.max_new_tokens={TOKENS}",
        *keys,
    )
    table = [ray.put({row: EncodedRow(row, prompt, [2], [3]) for row in range(2)})]
    loaded: list[ray.ObjectRef] = []

    def knock(said: Said) -> None:
        # The actor waits in front of its first token until this returns.
        loaded.append(actor.load_weights.remote(packed[1]))

    with Listener(tmp_path / "socket", once("rollout-0", "generating"), knock):
        options = actor_options(role="rollout", num_cpus=1, num_gpus=0, threads=1)
        options["runtime_env"]["env_vars"]["RAFT_RAY_ANNOUNCE"] = str(tmp_path / "socket")
        actor: Any = (
            ray.remote(RolloutActor)
            .options(**options, max_concurrency=2)
            .remote(config, resolve(TINY), table, "rollout-0", str(tmp_path))
        )
        ray.get(actor.load_weights.remote(packed[0]), timeout=LIMIT)
        batch = RolloutBatch(1, 0, (SampleId(0, 0), SampleId(0, 1)))
        infos, made = ray.get(list(actor.generate.options(num_returns=2).remote(batch)), timeout=LIMIT)
        ray.get(loaded, timeout=LIMIT)
        # What comes after has the new weights alone, and no keys and values of the old ones.
        _, later = ray.get(list(actor.generate.options(num_returns=2).remote(batch)), timeout=LIMIT)
        ray.kill(actor)
    check(made, [info.length for info in infos], models, prompt)
    assert [(t.version, t.versions) for t in later] == [(1, ())] * 2
    for trajectory in later:
        assert trajectory.token_ids.tolist() == mixed(models[1:], [0], prompt, len(trajectory.token_ids))


def check(made: list[Trajectory], lengths: list[int], models: list[Any], prompt: list[int]) -> None:
    for trajectory, length in zip(made, lengths, strict=True):
        assert trajectory.version == 0
        (first, start), (second, switched) = trajectory.versions
        assert (first, start, second) == (0, 0, 1)
        assert 0 < switched < length
        assert trajectory.token_ids.tolist() == mixed(models, [0, switched], prompt, length)
