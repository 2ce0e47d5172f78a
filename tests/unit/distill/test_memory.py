"""What a run's roles take is counted from config.json alone; what cannot fit is refused before anything starts."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from step_fixture import rows_and_samples, tiny_model

from raft_ray import models
from raft_ray.config import Config, settings
from raft_ray.distill import memory
from raft_ray.distill.learner_memory import LearnerBytes, learner_bytes
from raft_ray.distill.live_memory import LiveTensors, scoring_bytes, training_bytes
from raft_ray.distill.memory import GIB, check_memory, make_plan
from raft_ray.distill.student import Student, make_micro_batches
from raft_ray.errors import ConfigError
from raft_ray.machine import Machine

QWEN_3B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def config(*overrides: str) -> Config:
    return settings.load("smoke", ["model.dtype=bfloat16", "learner.zero_stage=1", *overrides])


def shape(folder: Path, values: dict[str, Any]) -> str:
    """A folder that holds a config.json and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.fixture
def big(tmp_path: Path) -> str:
    return shape(tmp_path / "3b", QWEN_3B)


def test_parameters_gradients_and_adams_states_are_those_of_a_real_model(tiny_model: Path) -> None:
    run = config("model.dtype=float32", "learner.zero_stage=0")
    model = models.load_model(str(tiny_model), run.model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    real = list(model.parameters())
    states = [v.nbytes for state in optimizer.state.values() for k, v in state.items() if k != "step"]

    (place,) = make_plan(run, str(tiny_model), str(tiny_model), Machine(GIB), passes=False).places
    learner = place.needs[0]

    assert learner.role == "learner rank"
    assert learner.weights == sum(p.nbytes for p in real)
    assert learner.gradients == sum(p.grad.nbytes for p in real if p.grad is not None)
    assert learner.optimizer == sum(states)


def test_an_adapter_is_counted_as_peft_makes_it(tiny_model: Path) -> None:
    from raft_ray.models.adapters import add_adapter

    run = config("learner.lora.rank=4", "learner.lora.dora=true")
    model = models.load_model(str(tiny_model), run.model)
    add_adapter(model, run.learner.lora, 0)
    plan = make_plan(run, str(tiny_model), str(tiny_model), Machine(GIB), passes=False)

    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert plan.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("half", "stage", "ranks", "held"),
    [
        # Bytes per parameter, as counted of DeepSpeed 0.19's own tensors.
        (False, 0, 2, LearnerBytes(4, 4, 8, 4, left=4)),
        (True, 1, 1, LearnerBytes(2, 6, 12, 2, left=2)),
        (True, 1, 2, LearnerBytes(2, 6, 6, 2, left=2)),
        (True, 2, 2, LearnerBytes(2, 2, 6, 2, beside=2)),
        (True, 3, 2, LearnerBytes(1, 4, 6, 2, beside=2)),
        (False, 1, 1, LearnerBytes(4, 4, 12, 4, beside=4)),
    ],
)
def test_what_ranks_share_depends_on_the_stage(half: bool, stage: int, ranks: int, held: LearnerBytes) -> None:
    count = 1_000_000
    scaled = LearnerBytes(**{name: size * count for name, size in vars(held).items()})
    assert learner_bytes(count, count, largest=count // 10, half=half, stage=stage, ranks=ranks) == scaled


def test_frozen_weights_have_neither_gradients_nor_states() -> None:
    held = learner_bytes(1_000_000, 1000, largest=100, half=True, stage=1, ranks=1)
    assert (held.weights, held.gradients, held.optimizer) == (2_000_000, 6000, 12_000)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_passes_on_shapes_take_what_real_ones_do(checkpointing: bool) -> None:
    model = tiny_model(0)
    rows, samples = rows_and_samples(12)
    batch, *others = make_micro_batches(rows, samples, total=12, tokens=10**6, share_prompt=True)
    assert not others
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student = Student(model.train(), 1.5)
    gc.collect()
    with LiveTensors(model) as live:
        student(batch).sum().backward()

    with torch.device("meta"):
        shapes = tiny_model(0)
    if checkpointing:
        shapes.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count, length = batch.input_ids.shape
    planned = training_bytes(shapes, count * length, length=length, top_k=12, shared=True)

    assert planned == pytest.approx(live.peak, rel=0.15)


def test_checkpointing_keeps_less_and_more_tokens_take_more(big: str) -> None:
    def passes(*overrides: str) -> int:
        run = config(f"model.path={big}", "learner.lora.rank=4", "data.max_prompt=32", "data.max_answer=32", *overrides)
        model = memory.student(run, big)
        return training_bytes(model, 1024, length=64, top_k=64, shared=True)

    assert passes("learner.gradient_checkpointing=true") < passes() / 5


def test_attention_by_the_models_own_code_keeps_every_score(tmp_path: Path) -> None:
    def passes(cap: float | None) -> int:
        values: dict[str, Any] = {
            "model_type": "gemma2",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 512,
            "attn_logit_softcapping": cap,
        }
        folder = shape(tmp_path / str(cap), values)
        plan = make_plan(config("distill.method=sft", "model.context=512"), folder, folder, Machine(GIB))
        return plan.places[0].needs[0].passes or 0

    assert passes(50.0) > 2 * passes(None) > 0


def test_a_teacher_never_has_the_logits_of_all_its_tokens(big: str) -> None:
    model = memory.student(config(), big)
    assert scoring_bytes(model, 4096, length=512, top_k=512) < 4096 * QWEN_3B["vocab_size"] * 2


def test_roles_lie_where_their_shares_of_gpus_are(big: str) -> None:
    run = config("rollout.num_gpus=0.3", "rollout.gpu_memory_utilization=0.25", "teacher.num_gpus=0.2")
    run.learner.num_gpus, run.learner.num_workers, run.learner.global_batch_size = 0.5, 2, 4
    plan = make_plan(run, big, big, Machine(64 * GIB, [80 * GIB]), passes=False)

    roles = {place.name: [need.role for need in place.needs] for place in plan.places}
    assert roles["GPU 0"] == ["learner rank", "learner rank"]
    assert roles["GPU 1"] == ["rollout engine", "teacher"]
    assert [place.capacity for place in plan.places] == [80 * GIB, None, 64 * GIB]
    engine = plan.places[1].needs[0]
    assert engine.weights + engine.kv_cache == 20 * GIB
    assert "object store" in roles["memory"]


def test_only_the_roles_of_a_method_are_counted(tiny_model: Path) -> None:
    def roles(*overrides: str) -> list[str]:
        plan = make_plan(config(*overrides), str(tiny_model), str(tiny_model), Machine(GIB), passes=False)
        return [need.role for need in plan.places[-1].needs]

    assert roles() == ["learner rank", "rollout engine", "teacher", "object store"]
    assert roles("distill.method=sft") == ["learner rank"]
    assert roles("distill.method=opd", "distill.off_policy=true") == ["learner rank", "teacher"]


def test_learners_that_score_hold_no_teacher_and_have_memory_for_its_passes(tiny_model: Path) -> None:
    keys = ["learner.lora.rank=4", "teacher.tokens=65536"]
    folder, machine = str(tiny_model), Machine(GIB)
    own, placed = (make_plan(config(*keys, *more), folder, folder, machine) for more in ([], ["teacher.place=learner"]))
    needs, ours = ({need.role: need for need in plan.places[0].needs} for plan in (own, placed))
    assert needs.keys() - ours.keys() == {"teacher"}
    scoring = needs["teacher"].activations
    assert scoring is not None
    assert (needs["learner rank"].activations or 0) < scoring
    assert ours["learner rank"].activations == scoring
    assert "teacher.tokens" in placed.most


def test_a_run_that_cannot_fit_is_refused_by_role_and_key(big: str, tiny_model: Path) -> None:
    check_memory(config(), str(tiny_model), str(tiny_model), Machine(24 * GIB))
    with pytest.raises(
        ConfigError,
        match=r"learner rank does not fit: the roles need at least \d\d\.\d GiB of memory \(1 learner rank \d\d\.\d, "
        r".*there are 24\.0; set learner.lora.rank=16",
    ):
        check_memory(config(f"model.path={big}"), big, big, Machine(24 * GIB))
    gpu = [f"learner.num_gpus={0.5}", "rollout.num_gpus=0.25", "teacher.num_gpus=0.25", "learner.lora.rank=8"]
    with pytest.raises(
        ConfigError, match=r"rollout engine does not fit.* of GPU 0 .*lower rollout.gpu_memory_utilization"
    ):
        check_memory(config(*gpu, "rollout.gpu_memory_utilization=0.9"), big, big, Machine(64 * GIB, [24 * GIB]))


@pytest.mark.parametrize(
    ("preset", "values", "gigabytes", "overrides"),
    [
        ("gpu_24gb", QWEN_3B, 24, []),
        ("gpu_80gb", QWEN_3B, 80, []),
        # As the preset's comment has it.
        (
            "gpu_80gb",
            LLAMA_8B,
            80,
            ["learner.lora.rank=16", "learner.lr=5e-5", "rollout.gpu_memory_utilization=0.3"],
        ),
    ],
)
def test_the_presets_of_a_gpu_fit_it(
    tmp_path: Path, preset: str, values: dict[str, Any], gigabytes: int, overrides: list[str]
) -> None:
    folder = shape(tmp_path / "model", values)
    run = settings.load(preset, ["data.train=rows.jsonl", f"model.path={folder}", *overrides])
    # What nvidia-smi says of an RTX 4090 and an H100.
    size = {24: 24564, 80: 81559}[gigabytes] * 2**20
    plan = make_plan(run, folder, folder, Machine(128 * GIB, [size]))

    gpu, _ = plan.places
    roles = ["learner rank", "rollout engine", *([] if run.learners_score else ["teacher"])]
    assert [need.role for need in gpu.needs] == roles
    assert gpu.sum() < 0.96 * size
    assert plan.most["learner.max_tokens_per_microbatch"] >= run.learner.max_tokens_per_microbatch
    # Keys and values of several whole rows.
    context, kept = run.model.context, 2 * 2 * values["num_key_value_heads"] * values["num_hidden_layers"] * 128
    assert context is not None
    assert gpu.needs[1].kv_cache > 8 * context * kept
    if overrides:
        comment = (Path(__file__).parents[3] / "configs" / f"{preset}.yaml").read_text()
        assert all(override in comment for override in overrides)


def test_a_whole_3b_model_does_not_fit_the_small_gpu(big: str) -> None:
    run = settings.load("gpu_24gb", ["data.train=rows.jsonl", f"model.path={big}", "learner.lora.rank=0"])
    with pytest.raises(ConfigError, match=r"learner rank does not fit.*of GPU 0 .*set learner.lora.rank=16"):
        check_memory(run, big, big, Machine(128 * GIB, [24 * GIB]))


def test_an_engine_whose_share_does_not_hold_its_weights_is_refused(big: str) -> None:
    run = settings.load(
        "gpu_24gb", ["data.train=rows.jsonl", f"model.path={big}", "rollout.gpu_memory_utilization=0.2"]
    )
    with pytest.raises(
        ConfigError, match=r"gpu_memory_utilization=0.2: .*weights take 5\.7 GiB of GPU 0.*24\.0.*raise it"
    ):
        check_memory(run, big, big, Machine(128 * GIB, [24 * GIB]))


def test_the_most_tokens_that_fit_do_fit_and_more_do_not(big: str) -> None:
    run = config("learner.lora.rank=4", "data.max_prompt=64", "data.max_answer=64", "learner.graphs=two_pass")
    run.learner.global_batch_size = 10**6
    machine = Machine(40 * GIB)
    key = "learner.max_tokens_per_microbatch"
    run.learner.max_tokens_per_microbatch = make_plan(run, big, big, machine).most[key]

    assert make_plan(run, big, big, machine).places[0].sum() == pytest.approx(40 * GIB, rel=0.01)
