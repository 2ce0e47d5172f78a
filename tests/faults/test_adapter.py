"""LoRA for real: learners killed and runs resumed end as the undisturbed one, merged model and adapter alike, with an
adapter that is new and one that is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_fixture import save_adapter
from listener import Listener, first_of, once
from run_files import lines, outcome
from safetensors.torch import load_file

from raft_ray import models
from raft_ray.config import Config, Dtype, ModelConfig

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(1200)]
HOT = ("sync.adapter=hot",)
LORA = ("learner.lora.rank=4", "learner.lora.dropout=0.2", "learner.lr=0.01", "learner.checkpoint_every=1")


def train(config: Config) -> Path:
    from actors.run import train as train_model

    return train_model(config).parent


@pytest.mark.parametrize("sync", [(), HOT], ids=["merged", "hot"])
def test_a_run_with_an_adapter_that_is_killed_and_resumed_ends_as_the_undisturbed_one(
    sync: tuple[str, ...], make_config: Callable[..., Config], tmp_path: Path, socket_path: Path
) -> None:
    import peft

    keys = (*LORA, *sync)
    whole = train(make_config(tmp_path / "whole", *keys, "learner.max_steps=3"))
    # An engine that swaps adapters starts again with the base and the newest one.
    rules = [once("learner-0", "backward", 1)] + [once("rollout-0", "generating", 1, count=2)] * bool(sync)
    with Listener(socket_path, first_of(rules)) as listener:
        parts = train(make_config(tmp_path / "parts", *keys, "learner.max_steps=2"))
    assert len(listener.killed) == len(rules)
    train(make_config(parts, *keys, "learner.max_steps=3", "run.resume=true"))
    assert outcome(parts) == outcome(whole)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (parts / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()

    # The engine checks log-probabilities at version 0, checksums after; the teacher is the original model.
    assert all(line["kl_loss"] > 0 and line["grad_norm"] > 0 for line in lines(whole / "metrics.jsonl"))
    config = ModelConfig(dtype=Dtype.float32)
    base: Any = models.load_model(models.resolve(models.TINY), config)
    merged: Any = models.load_model(str(whole / "model"), config)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = peft.PeftModel.from_pretrained(base, whole / "adapter")(input_ids=ids).logits
        assert torch.allclose(after, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(after, before, atol=1e-2)
    published = load_file(whole / ("adapter/adapter_model.safetensors" if sync else "model/model.safetensors"))
    nbytes = sum(tensor.nbytes for tensor in published.values())
    assert {line["sync_bytes"] for line in lines(whole / "metrics.jsonl")} == {nbytes}
    (state,) = max((whole / "checkpoints").glob("checkpoint_0*")).rglob("mp_rank_00_model_states.pt")
    names = torch.load(state, weights_only=False)["module"]
    assert names
    assert all(".lora_" in name for name in names)


def test_a_run_that_goes_on_from_an_adapter_is_resumed_bit_for_bit_and_its_teacher_is_the_start(
    make_config: Callable[..., Config], tmp_path: Path, tiny_model: Path
) -> None:
    given = save_adapter(tiny_model, tmp_path / "given")
    keys = (*LORA, f"model.adapter={given}", "distill.method=opd", "learner.lora.dropout=0")
    whole = train(make_config(tmp_path / "whole", *keys, "learner.max_steps=3"))
    train(make_config(tmp_path / "parts", *keys, "learner.max_steps=2"))
    train(make_config(tmp_path / "parts", *keys, "learner.max_steps=3", "run.resume=true"))
    assert outcome(tmp_path / "parts") == outcome(whole)

    # Without the answer before its eyes the teacher is the student at first: both are base and adapter.
    first, *later = lines(whole / "metrics.jsonl")
    assert abs(first["kl_loss"]) < 1e-6
    assert all(line["kl_loss"] > 1e-5 for line in later)
    settings = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["lora_alpha"]) == (str(tiny_model), 6)
    assert sorted(settings["target_modules"]) == ["down_proj", "q_proj", "v_proj"]
    # The same A and B, trained on: merged into the base they are the model of the run.
    config = ModelConfig(dtype=Dtype.float32)
    merged = load_file(Path(models.resolve(str(whole / "adapter"), config)) / "model.safetensors")
    trained = load_file(whole / "model" / "model.safetensors")
    assert merged.keys() == trained.keys()
    assert all(torch.equal(merged[name], trained[name]) for name in merged)
    began = load_file(given / "adapter_model.safetensors")
    now = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert began.keys() == now.keys()
    assert all(0 < (began[name] - now[name]).abs().max() < 0.1 for name in began)
