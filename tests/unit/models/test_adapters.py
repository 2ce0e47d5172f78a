"""LoRA: the adapter changes nothing at first, its losses and gradients are those of `W + s B A`, and what leaves the
learner is that sum under the model's own names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures.models import write_model
from step_fixture import TEMPERATURE, rows_and_samples, tiny_model
from torch import Tensor
from torch.func import functional_call

from actors.engine.weights import adapter_tensors, full_tensors
from raft_ray import models
from raft_ray.config import Config, Dtype, LoraConfig, ModelConfig
from raft_ray.distill.student import MicroBatch, Student, make_micro_batches
from raft_ray.errors import ModelError
from raft_ray.models import adapters
from raft_ray.models.adapters import adapted_layers, add_adapter, base_parameters, check_peft

LORA = LoraConfig(rank=3, alpha=12)
KINDS = {
    "plain": LORA,
    "rslora": LoraConfig(rank=3, alpha=12, rslora=True),
    "dora": LoraConfig(rank=3, alpha=12, dora=True),
    "some": LoraConfig(rank=3, alpha=12, target_modules=["q_proj", "1.mlp.down_proj"]),
}
kinds = pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)


def adapted(lora: LoraConfig, size: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model with an adapter whose trained parameters are moved by random steps of `size`."""
    model: Any = tiny_model(0).to(dtype)
    add_adapter(model, lora, seed=7)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.add_(size * torch.randn(parameter.shape, generator=drawn).to(dtype))
    return model


def trained(model: Any) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def batches(share_prompt: bool = True) -> list[MicroBatch]:
    rows, samples = rows_and_samples(4)
    return make_micro_batches(rows, samples, total=4, tokens=60, share_prompt=share_prompt)


def losses(model: Any, share_prompt: bool = True) -> Tensor:
    """[2], SFT and KL."""
    student = Student(model, TEMPERATURE).train()
    return torch.stack([student(batch) for batch in batches(share_prompt)]).sum(0)[:2]


@kinds
def test_a_new_adapter_changes_no_loss_and_no_published_tensor_bit_for_bit(lora: LoraConfig) -> None:
    plain, model = tiny_model(0), adapted(lora)
    assert torch.equal(losses(model), losses(plain))
    sent = dict(full_tensors(model, 0))
    assert list(sent) == [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(sent[name], parameter) for name, parameter in plain.named_parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == dict(adapter_tensors(model, 0)).keys()


def test_a_new_adapter_of_half_precision_publishes_the_original_weights() -> None:
    for lora in KINDS.values():
        sent = dict(full_tensors(adapted(lora, dtype=torch.bfloat16), 0, dtype=torch.float16))
        for name, parameter in tiny_model(0).named_parameters():
            assert torch.equal(sent[name], parameter.bfloat16().half())


def test_an_adapter_is_drawn_from_its_seed_alone_and_draws_nothing_from_others() -> None:
    first = adapted(LORA)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model: Any = tiny_model(0)
    torch.set_rng_state(before)
    add_adapter(model, LORA, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(trained(first), trained(model), strict=True))
    other: Any = tiny_model(0)
    add_adapter(other, LORA, seed=8)
    assert not torch.equal(trained(first)[0], trained(other)[0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share_prompt", [False, True])
@kinds
def test_losses_and_gradients_are_those_of_the_whole_weights(
    lora: LoraConfig, share_prompt: bool, checkpointing: bool
) -> None:
    """Against `W + s B A` written out and taken through the plain model; DoRA's norm is a constant there."""
    model = adapted(lora, 0.1)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = losses(model, share_prompt)
    got = torch.autograd.grad(found.sum(), trained(model))

    leaves = {name: parameter.detach().clone() for name, parameter, _ in base_parameters(model)}
    copies = {name: t.requires_grad_() for name, t in adapter_tensors(model, 0)}
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    for name in adapted_layers(model):
        a, b = (copies[f"{name}.lora_{part}.default.weight"] for part in "AB")
        whole = leaves[f"{name}.weight"] + scale * b @ a
        if lora.dora:
            magnitude = copies[f"{name}.lora_magnitude_vector.default.weight"]
            whole = whole * (magnitude / whole.detach().norm(dim=1))[:, None]
        leaves[f"{name}.weight"] = whole
    plain = tiny_model(0)

    class Dense(torch.nn.Module):
        config, dtype = plain.config, plain.dtype
        get_output_embeddings = plain.get_output_embeddings

        def get_decoder(self) -> Any:
            body = {name.removeprefix("model."): t for name, t in leaves.items() if name.startswith("model.")}
            return lambda **kwargs: functional_call(plain.model, body, (), kwargs)

    want = losses(Dense(), share_prompt)
    assert torch.allclose(found, want, rtol=1e-5)
    for name, one, other in zip(copies, got, torch.autograd.grad(want.sum(), list(copies.values())), strict=True):
        assert one.abs().max() > 0, name
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max())), name


@kinds
def test_what_is_published_computes_what_the_learner_computes_and_leaves_it_as_it_is(lora: LoraConfig) -> None:
    model = adapted(lora, 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sent = dict(full_tensors(model, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    plain = tiny_model(3)
    assert plain.load_state_dict(sent, strict=False).unexpected_keys == []
    assert torch.allclose(losses(plain), losses(model), rtol=1e-5)
    assert not torch.allclose(losses(plain), losses(tiny_model(0)), rtol=1e-2)
    changed = {name for name, p in tiny_model(0).named_parameters() if not torch.equal(sent[name], p)}
    assert changed == {f"{name}.weight" for name in adapted_layers(model)}


def test_tied_embeddings_are_published_once_and_stay_tied(tiny_model: Path) -> None:
    config = ModelConfig(dtype=Dtype.float32)
    model: Any = models.load_model(str(tiny_model), config)
    names = [name for name, _ in model.named_parameters()]
    add_adapter(model, LORA, seed=0)
    assert [name for name, _ in full_tensors(model, 0)] == names
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@kinds
def test_peft_loads_the_adapter_onto_its_base_and_computes_the_merged_models_logits(
    lora: LoraConfig, tmp_path: Path
) -> None:
    import peft

    model = adapted(lora, 0.1)
    for name, content in adapters.adapter_files(model, dict(adapter_tensors(model, 0)), "a/base").items():
        (tmp_path / name).write_bytes(content)
    loaded = peft.PeftModel.from_pretrained(tiny_model(0), tmp_path)
    assert loaded.peft_config["default"].base_model_name_or_path == "a/base"
    plain = tiny_model(0)
    plain.load_state_dict(dict(full_tensors(model, 0)), strict=False)
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_vllm_reads_the_adapters_settings(tmp_path: Path) -> None:
    from vllm.lora.peft_helper import PEFTHelper

    model = adapted(KINDS["rslora"])
    for name, content in adapters.adapter_files(model, dict(adapter_tensors(model, 0)), "a/base").items():
        (tmp_path / name).write_bytes(content)
    helper = PEFTHelper.from_local_dir(str(tmp_path), max_position_embeddings=512)
    helper.validate_legal(SimpleNamespace(max_lora_rank=16))
    assert (helper.r, helper.vllm_lora_scaling_factor) == (3, pytest.approx(12 / 3**0.5))


def test_dropout_is_of_the_adapter_and_of_training_alone() -> None:
    model = adapted(LoraConfig(rank=3, alpha=12, dropout=0.5), 0.1)
    student, batch = Student(model, TEMPERATURE).train(), batches()[0]
    torch.manual_seed(0)
    first = student(batch)
    assert not torch.equal(first, student(batch))
    torch.manual_seed(0)
    assert torch.equal(first, student(batch))
    student.eval()
    assert torch.equal(student(batch), student(batch))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            ["q_proj", "query"],
            "there is no linear layer query in LlamaForCausalLM; it has down_proj, gate_proj, .*v_proj",
        ),
        ("lm_head", r"no linear layer lm_head .*\(the output head and packed experts cannot have an adapter\)"),
        (["embed_tokens"], "no linear layer embed_tokens"),
        (["proj"], "no linear layer proj"),
        ([], "names no layer"),
    ],
)
def test_target_modules_that_are_no_linear_layers_are_refused_with_those_that_are(
    wanted: Any, message: str, tiny_model: Path
) -> None:
    config = Config()
    config.learner.lora = LoraConfig(rank=2, target_modules=wanted)
    with pytest.raises(ModelError, match=rf"^learner\.lora\.target_modules=.*{message}") as refused:
        models.check_adapter(str(tiny_model), config)
    assert "\n" not in str(refused.value)
    config.learner.lora.rank = 0
    models.check_adapter(str(tiny_model), config)


def test_layers_whose_adapters_engines_swap_are_known_before_they_start(tiny_model: Path, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, target_modules=["q_proj", "1.mlp.down_proj"])
    assert models.swapped_layers(str(tiny_model), ModelConfig(), lora, on_gpu=False) == ["down_proj", "q_proj"]
    experts = str(write_model("qwen3moe", tmp_path))
    lora = LoraConfig(rank=2)
    layers = models.swapped_layers(experts, ModelConfig(), lora, on_gpu=True)
    assert layers == ["k_proj", "o_proj", "q_proj", "v_proj"]
    with pytest.raises(ModelError, match=r"^sync\.adapter=hot: Qwen3MoeForCausalLM has experts, .*=merged$"):
        models.swapped_layers(experts, ModelConfig(), lora, on_gpu=False)


def test_layers_that_the_model_does_not_call_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model(0)
    for layer in model.model.layers:
        mlp = layer.mlp
        monkeypatch.setattr(mlp, "forward", lambda x, mlp=mlp: x @ mlp.up_proj.weight.T @ mlp.down_proj.weight.T)
    with pytest.raises(
        ModelError, match=r"does not call its layers .*down_proj.* set .*=\[k_proj,o_proj,q_proj,v_proj"
    ):
        add_adapter(model, LORA, seed=0)


def test_an_adapter_without_peft_is_refused_and_no_adapter_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    check_peft(LoraConfig())
    with pytest.raises(ModelError, match=r"^learner\.lora\.rank=3: .*pip install 'raft-ray\[lora\]', or set"):
        check_peft(LORA)
    code = (
        "import sys; from step_fixture import tiny_model; from actors.engine.weights import full_tensors;"
        "list(full_tensors(tiny_model(0), 0)); import raft_ray.checks, raft_ray.preflight;"
        "import actors.distill.student_engine; print('peft' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
