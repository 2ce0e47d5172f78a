"""Every architecture: a vLLM engine finds likely what the learner does, with each way of getting weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from huggingface_hub import save_torch_state_dict

from actors import weight_sync
from actors.engine import Engine
from actors.weight_receive import Receiver
from raft_ray import models
from raft_ray.config import Dtype, ModelConfig, RolloutConfig

from .models import CONFIGS, change, write_model

FLOAT32 = ModelConfig(dtype=Dtype.float32)
PROMPT, RESPONSE = list(range(40, 80)), list(range(300, 340))
ENGINES = [name for name in sorted(CONFIGS) if name not in ("phi", "bloom", "plain")]


@pytest.fixture(scope="module", params=ENGINES)
def named(
    ray_cluster: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    name = str(request.param)
    yield name, write_model(name, tmp_path_factory.mktemp(name))
    gc.collect()


def error(engine: Engine, model: Any) -> float:
    """The largest difference of the log-probabilities of `RESPONSE` between an engine and a model."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPT, *RESPONSE]]), use_cache=False).logits[0].float()
    own = logits[len(PROMPT) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(RESPONSE)[:, None])[:, 0]
    return float((torch.tensor(engine.logprobs(PROMPT, RESPONSE)) - own).abs().max())


def test_an_engine_computes_what_the_learner_does_after_every_way_of_getting_weights(
    named: tuple[str, Path], tmp_path: Path
) -> None:
    _, folder = named
    model = models.load_model(str(folder), FLOAT32).eval()
    weight_sync.register()
    engine = Engine(str(folder), FLOAT32, RolloutConfig(), context=256, weight_sync=weight_sync.OBJECT_STORE)
    engine.llm.init_weight_transfer_engine({"init_info": {}})
    receiver = Receiver(engine, True, "engine")
    # It starts with weights of its own, so that nothing passes for what an update should have brought.
    assert error(engine, model) > 0.3
    for version in (0, 1, 2):
        change(model, 0.05 * version)
        weights = weight_sync.pack(version, weight_sync.full_tensors(model, 0))
        receiver.load(version, [ray.put(weights)], weights.checksum)
        assert error(engine, model) < 2e-3, f"after the sync of version {version}"
    exported = tmp_path / "exported"
    exported.mkdir()
    state = dict(weight_sync.full_tensors(change(model, 0.05), 0))
    save_torch_state_dict(models.checkpoint_tensors(str(folder), FLOAT32, state), exported)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (exported / file.name).write_bytes(file.read_bytes())
    engine.load_weights(str(exported))
    assert error(engine, model) < 2e-3, "after a reload from a folder"
    del engine, receiver
    gc.collect()
    fresh = Engine(str(exported), FLOAT32, RolloutConfig(), context=256)
    assert error(fresh, model) < 2e-3, "of an exported folder"
