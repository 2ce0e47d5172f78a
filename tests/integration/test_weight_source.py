"""The learner's weights as vLLM's trainers read them where no rank holds a part only; ZeRO-3 is in test_weight_push."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raft_ray.config import Dtype, LoraConfig, ModelConfig
from raft_ray.models import TINY, load_model, resolve
from raft_ray.models.adapters import add_adapter


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_pass_yields_the_weights_of_the_moment_as_declared(stage: int, dtype: torch.dtype) -> None:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    from actors.engine.weight_push import DeepSpeedSource

    model: Any = load_model(resolve(TINY), ModelConfig(dtype=Dtype.float32))
    source = DeepSpeedSource(model, stage, dtype, verify=True)
    sums = set()
    for _ in range(2):
        # vLLM's own check of the two channels against each other.
        sent = dict(NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))
        assert sum(source.sizes()) == sum(tensor.nbytes for tensor in sent.values())
        for name, parameter in model.named_parameters():
            assert torch.equal(sent[name], parameter.detach().to(dtype))
        sums.add(source.checksum())
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    assert len(sums) == 2


def test_an_adapter_is_declared_and_sent_merged_under_the_models_own_names() -> None:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    from actors.engine.weight_push import DeepSpeedSource

    model: Any = load_model(resolve(TINY), ModelConfig(dtype=Dtype.float32))
    names = [name for name, _ in model.named_parameters()]
    add_adapter(model, LoraConfig(rank=2, dora=True), seed=0)
    source = DeepSpeedSource(model, 1, torch.bfloat16, verify=True)
    sent = dict(NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))
    assert list(sent) == names
