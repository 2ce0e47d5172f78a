"""A model that is loaded is the folder's, whole; what cannot be trained is refused before anything starts."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from raft_ray import models
from raft_ray.config import Dtype, ModelConfig
from raft_ray.errors import ModelError
from raft_ray.models.checks import check_repeatable
from raft_ray.models.weight_files import INDEX

FLOAT32 = ModelConfig(dtype=Dtype.float32)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def settings(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def prefixed(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def absent_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    where = {name: f"model-0000{1 + (name == names[0])}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def holding(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


DOWN = "model.layers.1.mlp.down_proj.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a layer is missing": (weights(lambda t: t.pop(DOWN)), rf"1 tensors missing \({DOWN}\)"),
    "names of a wrapper": (weights(prefixed), r"tensors missing .*; \d+ tensors not of this model \(module\."),
    "a tensor too many": (weights(lambda t: t.update(more=torch.ones(1))), r"1 tensors not of this model \(more\)"),
    "another shape": (weights(lambda t: t.update({DOWN: torch.ones(3, 3)})), r"down_proj"),
    "no head": (settings(tie_word_embeddings=False), r"1 tensors missing \(lm_head\.weight\)"),
    "a head beside tied ones": (
        weights(lambda t: t.update({"lm_head.weight": torch.randn(512, 64)})),
        r"lm_head\.weight and model\.embed_tokens\.weight differ, but config\.json ties them",
    ),
    "an adapter beside the weights": (adapter, r"holds an adapter .* merge_and_unload"),
    "an adapter alone": (adapter_alone, r"holds an adapter .* model\.path=BASE model\.adapter="),
    "a torn file": (torn, r"model\.safetensors: not a readable safetensors file"),
    "an absent shard": (absent_shard, r"model-00002-of-00002\.safetensors, which .* names, is missing"),
    "a config that is no JSON": (holding("config.json", b"{"), r"model\.path=.*config\.json line 1: not JSON"),
    "a config that is no text": (holding("config.json", b"\xff"), r"config\.json: cannot be read as UTF-8 text"),
    "a config without keys": (holding("config.json", b"[]"), r"config\.json: expected a JSON object, found list"),
    "a config of another kind": (
        holding("config.json", b'{"model_type": "llama", "hidden_size": "large"}'),
        "no model config could be loaded",
    ),
    "an index that is no JSON": (holding(INDEX, b"{"), r"index\.json line 1: not JSON"),
    "an index without a map": (holding(INDEX, b'{"weight_map": ["a"]}'), r"index\.json: its weight_map does not name"),
    **{
        f"quantised by {method}": (
            settings(quantization_config={"quant_method": method, "bits": 4}),
            rf"quantised \({method}\), and cannot be trained",
        )
        for method in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4")
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_a_whole_model_is_refused_in_one_line_without_reading_weights(
    fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What transformers tells the terminal of it.
    said: list[str] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: said.append(record.getMessage()))
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ModelError, match=words) as refused:
        models.check_weights(str(folder), FLOAT32)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    with pytest.raises(ModelError, match=words):
        models.load_model(str(folder), FLOAT32)
    assert not said


def test_a_stored_copy_of_tied_embeddings_is_no_fault(folder: Path) -> None:
    weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(folder)
    models.check_weights(str(folder), FLOAT32)


SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.3,
}


def saved(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_off_unless_it_is_asked_for(dropout: bool, folder: Path) -> None:
    saved(LlamaConfig(**SHAPE, attention_dropout=0.3), folder)
    model = models.load_model(str(folder), FLOAT32, dropout=dropout).train()
    if not dropout:
        check_repeatable(model)
        return
    with pytest.raises(ModelError, match=r"learner\.dropout=true"):
        check_repeatable(model)


def test_what_is_random_in_training_without_being_called_dropout_is_refused(tiny_model: Path) -> None:
    model: Any = models.load_model(str(tiny_model), FLOAT32)
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, _, out: out * (1 + 0.1 * torch.randn_like(out)) if module.training else out
    )
    with pytest.raises(ModelError, match="in training it computes other hidden states"):
        check_repeatable(model)


def test_attention_leaves_out_no_soft_cap(folder: Path) -> None:
    """PyTorch's kernel knows none, and transformers hands it over all the same."""
    saved(Gemma2Config(**SHAPE, query_pre_attn_scalar=32, attn_logit_softcapping=2.0), folder)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)(ids).logits
        cut = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)(ids).logits
        ours = models.load_model(str(folder), FLOAT32)(ids).logits
    assert torch.allclose(ours, own, atol=1e-5)
    assert not torch.allclose(ours, cut, atol=1e-2)
