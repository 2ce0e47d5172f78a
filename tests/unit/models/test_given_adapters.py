"""A peft adapter as a model: merged as peft merges it, trained on as it is, and refused where it would not be computed
right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_fixture import FLOAT32, save_adapter
from safetensors.torch import load_file, save_file

from actors.distill.student_engine import load_student
from actors.engine.weights import adapter_tensors, full_tensors
from raft_ray import models
from raft_ray.config import Config, Dtype, LoraConfig, ModelConfig, SyncAdapter, TeacherPlace
from raft_ray.errors import ModelError
from raft_ray.models import adapters

IDS = torch.arange(3, 60)[None]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some layers": {"target_modules": ["q_proj", "1.mlp.down_proj"]},
    "a pattern": {"target_modules": r".*\.1\.self_attn\.[qv]_proj"},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "other ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "without": {"exclude_modules": ["q_proj"]},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return save_adapter(tiny_model, tmp_path / "adapter")


def config_of(tiny_model: Path, adapter: Path, **lora: Any) -> Config:
    config = Config(model=replace(FLOAT32, path=str(tiny_model), adapter=str(adapter)))
    config.learner.lora = LoraConfig(**lora)
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_computes_what_peft_makes_of_base_and_adapter(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = save_adapter(tiny_model, tmp_path / "adapter", **KINDS[kind])
    name = models.source(replace(FLOAT32, path=str(tiny_model), adapter=str(folder)))
    models.check_weights(name, FLOAT32)
    base: Any = models.load_model(str(tiny_model), FLOAT32)
    with torch.no_grad():
        before = base(input_ids=IDS).logits
        ours = models.load_model(name, FLOAT32)(input_ids=IDS).logits
        theirs = peft.PeftModel.from_pretrained(base, folder)
        unmerged = theirs(input_ids=IDS).logits
        merged = theirs.merge_and_unload()(input_ids=IDS).logits
    assert torch.allclose(ours, merged, rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours, unmerged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-2)


def test_a_merged_folder_is_the_bases_but_for_its_weights_and_is_made_once(adapter: Path, tiny_model: Path) -> None:
    name = models.source(replace(FLOAT32, path=str(tiny_model), adapter=str(adapter)))
    (adapter / "config.json").write_text("{}")  # some trainers leave the base's there
    folder = Path(models.resolve(name, FLOAT32))
    times = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.resolve(name, FLOAT32) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == times
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / file).read_bytes() == (tiny_model / file).read_bytes()
    ours, base = load_file(folder / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert ours.keys() == base.keys()
    changed = {key.split(".")[-2] for key in ours if not torch.equal(ours[key], base[key])}
    assert changed == {"q_proj", "v_proj", "down_proj"}
    # Other weights in the adapter are another model.
    before = models.model_identity(name)
    file = adapter / "adapter_model.safetensors"
    save_file({key: 2 * tensor for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    assert models.resolve(name, FLOAT32) != str(folder)
    assert models.model_identity(name) != before


def test_the_base_stays_in_its_precision_and_the_sum_is_taken_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    half: Any = models.load_model(str(tiny_model), replace(FLOAT32, dtype=Dtype.bfloat16))
    half.save_pretrained(tmp_path / "half")
    models.load_tokenizer(str(tiny_model), FLOAT32).save_pretrained(tmp_path / "half")
    adapter = save_adapter(tmp_path / "half", tmp_path / "adapter")
    folder = Path(models.resolve(f"{tmp_path / 'half'} + {adapter}"))
    ours, base = load_file(folder / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    deltas = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (deltas[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert torch.equal(ours[f"{name}.weight"], (base[f"{name}.weight"].float() + 6 / 4 * (b @ a)).bfloat16())


def test_an_adapter_alone_is_the_model_of_the_base_that_it_names(adapter: Path, tiny_model: Path) -> None:
    assert models.settled(str(adapter)) == f"{tiny_model} + {adapter}"
    assert models.resolve(str(adapter)) == models.resolve(f"{tiny_model} + {adapter}")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "nobody/nothing"}))
    with pytest.raises(ModelError, match=rf"set model\.path=nobody/nothing model\.adapter={adapter}$"):
        models.load_chat(str(adapter), FLOAT32)


def test_an_adapter_of_other_weights_than_the_models_is_refused(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other: Any = models.load_model(str(tiny_model), FLOAT32)
    other.model.norm.weight.data.add_(1)
    other.save_pretrained(tmp_path / "other")
    models.load_tokenizer(str(tiny_model), FLOAT32).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ModelError, match=rf"was trained on {tiny_model} .* other weights than .*/other; set model\.path="
    ):
        models.check_weights(f"{tmp_path / 'other'} + {adapter}", FLOAT32)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for elsewhere in ("/nowhere", None):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": elsewhere}))
        models.check_weights(f"{tmp_path / 'other'} + {adapter}", FLOAT32)


def test_actors_get_whole_paths(
    adapter: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(tiny_model)
    assert models.settled("./base + ./adapter") == f"{tmp_path}/base + {adapter}"
    assert models.settled("base + adapter + ./adapter") == f"{tmp_path}/base + {adapter} + {adapter}"
    assert models.settled("random:tiny + adapter") == f"random:tiny + {adapter}"
    assert models.settled("./adapter") == f"{tiny_model} + {adapter}"
    assert models.settled("./base") == "./base"


def test_adapters_are_merged_one_on_the_other(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    first = f"{tiny_model} + {adapter}"
    second = save_adapter(Path(models.resolve(first)), tmp_path / "second")
    name = f"{first} + {second}"
    models.check_weights(name, FLOAT32)
    assert models.base_folder(name) == str(tiny_model)
    assert models.resolve(name) == models.resolve(f"{models.resolve(first)} + {second}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_with_the_adapter_is_the_merged_model_and_trains_its_a_and_b_on(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = save_adapter(tiny_model, tmp_path / "adapter", **KINDS[kind])
    config = config_of(tiny_model, folder, rank=4, dropout=0.5)
    name = models.source(config.model)
    models.check_adapter(name, config)
    student = load_student(config, name)
    merged = dict(models.load_model(name, config.model).named_parameters())
    # The teacher, and each engine's first weights: bit for bit.
    for key, tensor in full_tensors(student, 0):
        assert torch.equal(tensor, merged[key]), key
    # What is written beside the model is the adapter, bit for bit, on its own base.
    tensors = dict(adapter_tensors(student, 0))
    assert {key for key, each in student.named_parameters() if each.requires_grad} == tensors.keys()
    for file, content in adapters.adapter_files(student, tensors, str(tiny_model)).items():
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / file).write_bytes(content)
    ours, theirs = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("again", "adapter"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert models.resolve(f"{tiny_model} + {tmp_path / 'again'}")


def test_in_half_precision_a_student_with_an_adapter_of_a_run_begins_as_its_teacher(
    tiny_model: Path, tmp_path: Path
) -> None:
    half = replace(FLOAT32, dtype=Dtype.bfloat16)
    models.load_model(str(tiny_model), half).save_pretrained(tmp_path / "half")
    models.load_tokenizer(str(tiny_model), half).save_pretrained(tmp_path / "half")
    adapter = save_adapter(tmp_path / "half", tmp_path / "adapter")
    # As a run of this precision writes it.
    file = adapter / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    config = config_of(tmp_path / "half", adapter, rank=4)
    config.model.dtype = Dtype.bfloat16
    name = models.source(config.model)
    student, teacher = load_student(config, name), models.load_model(name, config.model)
    teachers = dict(teacher.named_parameters())
    assert all(torch.equal(tensor, teachers[key]) for key, tensor in full_tensors(student, 0))


def test_without_a_rank_the_merged_weights_are_trained(adapter: Path, tiny_model: Path) -> None:
    config = config_of(tiny_model, adapter)
    name = models.source(config.model)
    models.check_adapter(name, config)
    student, merged = load_student(config, name), models.load_model(name, config.model)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), merged.parameters(), strict=True))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 8}, r"learner\.lora\.rank=8: model\.adapter=.* has r=4 .*, or to 0"),
        ({"rank": 4, "alpha": 16}, r"learner\.lora\.alpha=16: model\.adapter=.* has lora_alpha=6 "),
        (
            {"rank": 4, "target_modules": ["q_proj"]},
            r"learner\.lora\.target_modules=\['q_proj'\]: .* has target_modules=\['down_proj', 'q_proj', 'v_proj'\]",
        ),
        ({"rank": 4, "rslora": True}, r"learner\.lora\.rslora=True: .* has use_rslora=False"),
        ({"rank": 4, "dora": True}, r"learner\.lora\.dora=True: .* has use_dora=False"),
    ],
)
def test_keys_that_contradict_the_adapter_are_refused_with_both(
    lora: dict[str, Any], message: str, adapter: Path, tiny_model: Path
) -> None:
    config = config_of(tiny_model, adapter, **lora)
    with pytest.raises(ModelError, match=f"^{message}") as refused:
        models.check_adapter(models.source(config.model), config)
    assert "\n" not in str(refused.value)
    with pytest.raises(ModelError, match=f"^{message}"):
        load_student(config, models.source(config.model))


def test_keys_that_agree_pass_and_dora_needs_whole_weights(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    same = {"rank": 4, "alpha": 6, "target_modules": ["v_proj", "down_proj", "q_proj"]}
    config = config_of(tiny_model, adapter, **same)
    told = models.check_adapter(models.source(config.model), config)
    assert told is not None
    assert "r=4, lora_alpha=6, target_modules=['down_proj', 'q_proj', 'v_proj'], use_rslora=False" in told
    dora = config_of(tiny_model, save_adapter(tiny_model, tmp_path / "dora", use_dora=True), rank=4)
    dora.learner.zero_stage = 3
    with pytest.raises(ModelError, match=r"use_dora=true .* learner\.zero_stage=2"):
        models.check_adapter(models.source(dora.model), dora)


def test_learners_are_no_teacher_with_a_given_adapter_and_engines_do_not_swap_it(
    adapter: Path, tiny_model: Path
) -> None:
    config = config_of(tiny_model, adapter, rank=4)
    name = models.source(config.model)
    config.teacher.place = TeacherPlace.learner
    with pytest.raises(ModelError, match=r"^model\.adapter=.*; set teacher\.place=own$"):
        models.check_adapter(name, config)
    config.teacher.place, config.sync.adapter = TeacherPlace.own, SyncAdapter.hot
    with pytest.raises(ModelError, match=r"^model\.adapter=.*; set sync\.adapter=merged$"):
        models.check_adapter(name, config)


def says(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def holds(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
CONFIG, TENSORS = r"adapter_config\.json", r"adapter_model\.safetensors"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"peft_type {kind}": (says(peft_type=kind), rf"{CONFIG}: peft_type=\"{kind}\"")
        for kind in ("IA3", "LOHA", "ADALORA", "PROMPT_TUNING", "PREFIX_TUNING", "VERA", "TRAINABLE_TOKENS")
    },
    **{
        f"{name} {value}": (says(**{name: value}), rf"{CONFIG}: {name}=")
        for name, value in {
            "modules_to_save": ["lm_head"],
            "bias": "lora_only",
            "lora_bias": True,
            "trainable_token_indices": [1, 2],
            "target_parameters": ["mlp.experts"],
            "layer_replication": [[0, 2], [0, 2]],
            "alora_invocation_tokens": [5],
            "use_qalora": True,
            "loftq_config": {"loftq_bits": 4},
            "init_lora_weights": "pissa",
            "task_type": "SEQ_CLS",
            "fan_in_fan_out": True,
            "megatron_config": {"x": 1},
            "revision": "v2",
            "a_field_of_tomorrow": 3,
        }.items()
    },
    "no rank": (says(r=0), CONFIG),
    "a head": (says(target_modules=["lm_head"]), r"target_modules: lm_head cannot have an adapter"),
    "embeddings": (says(target_modules=["embed_tokens"]), r"target_modules: .*embed_tokens cannot have an adapter"),
    "no such layers": (says(target_modules=["query"]), rf"{CONFIG}: target_modules"),
    "another rank": (says(r=5), rf"{TENSORS}: .* of another shape"),
    "more layers": (says(target_modules=["q_proj", "v_proj", "down_proj", "k_proj"]), rf"{TENSORS}: .* 4 tensors miss"),
    "fewer layers": (says(target_modules=["q_proj"]), rf"{TENSORS}: .* 8 tensors not of this model"),
    "a tensor missing": (holds(lambda t: t.pop(FIRST)), rf"{TENSORS}: .* 1 tensors missing \(model\.layers\.0"),
    "a tensor too many": (
        holds(lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(512, 64)})),
        r"1 tensors not of this model \(model\.embed_tokens\.weight\)",
    ),
    "a tensor of another shape": (holds(lambda t: t.update({FIRST: torch.zeros(4, 9)})), "1 tensors of another shape"),
    "not finite": (holds(lambda t: t[FIRST].fill_(torch.inf)), f"{TENSORS}: .*not finite"),
    "pickled": (pickled, r"adapter_model\.bin: .* model\.allow_pickle=true"),
    "no tensors": (lambda folder: (folder / "adapter_model.safetensors").unlink(), f"there is no {TENSORS}"),
    "damaged tensors": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), f"{TENSORS}: cannot"),
    "damaged settings": (lambda folder: (folder / "adapter_config.json").write_text("{"), CONFIG),
    "a whole model": (
        lambda folder: (folder / "model.safetensors").touch(),
        r"no adapter_config\.json without whole weights there",
    ),
    "no adapter": (lambda folder: (folder / "adapter_config.json").unlink(), r"no adapter_config\.json without whole"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_not_be_computed_right_is_refused_by_file_and_field(
    fault: str, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    spoil, words = FAULTS[fault]
    spoil(adapter)
    name = f"{tiny_model} + {adapter}"
    with pytest.raises(ModelError, match=words) as refused:
        models.check_weights(name, FLOAT32)
    assert "\n" not in str(refused.value)
    assert str(adapter) in str(refused.value)
    with pytest.raises(ModelError, match=words):
        models.load_model(name, FLOAT32)
    assert not [*(tmp_path / "cache").rglob("model.safetensors")]


def test_a_pickled_adapter_that_is_trusted_is_the_same_model(adapter: Path, tiny_model: Path) -> None:
    name = f"{tiny_model} + {adapter}"
    first = load_file(Path(models.resolve(name)) / "model.safetensors")
    pickled(adapter)
    second = load_file(Path(models.resolve(name, replace(FLOAT32, allow_pickle=True))) / "model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_quantised_base_is_refused(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    base = shutil.copytree(tiny_model, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ModelError, match=r"its weights are quantised \(bitsandbytes\)"):
        models.resolve(f"{base} + {adapter}")


def test_names_with_a_plus_are_folders_where_there_are_such(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a + b").symlink_to(tiny_model)
    assert models.split(str(tmp_path / "a + b")) == (str(tmp_path / "a + b"), None)
    with pytest.raises(ModelError, match="rename the folder"):
        models.source(ModelConfig(adapter="a + b"))
