"""Stage 2 for real: Ray, vLLM, DeepSpeed and Ray Train on the tiny model, checked by what a run leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import lines
from safetensors.torch import load_file

from raft_ray.config import Config, Dtype, ModelConfig, RolloutConfig
from raft_ray.distill.losses import EmaBalancer
from raft_ray.errors import RaftError
from raft_ray.models import TINY, load_model, load_tokenizer, resolve
from raft_ray.runs.records import PHASES

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]


def run(config: Config) -> Path:
    from actors.run import train

    return train(config).parent


def test_two_learners_and_two_rollout_actors_leave_a_complete_record(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = run(
        make_config(
            tmp_path / "run", "learner.num_workers=2", "learner.zero_stage=2", "rollout.actors=2", "teacher.actors=2"
        )
    )
    metrics, trace = lines(folder / "metrics.jsonl"), lines(folder / "trace.jsonl")
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4]
    balancer = EmaBalancer(0.9, max_lambda=20.0)
    for line in metrics:
        assert line["epoch"] == (0 if line["step"] < 3 else 1)
        assert line["rows"] == 4
        assert line["lambda"] == pytest.approx(balancer.update(line["sft_loss"], line["kl_loss"]), rel=1e-9)
        assert line["loss"] == pytest.approx(line["sft_loss"] + line["lambda"] * line["kl_loss"], rel=1e-9)
        assert line["ce_kl_ratio"] == pytest.approx(line["sft_loss"] / (line["lambda"] * line["kl_loss"]), rel=1e-9)
        assert line["staleness"] == line["staleness_max"] == 0
        assert 0 < line["teacher_mass"] <= 1
        assert 0 < line["student_mass"] <= 1
        assert 1 <= line["response_length"] <= 8
        assert 0 <= line["truncated"] <= 1
        assert line["target_bytes_per_token"] == 6 * 64
        assert line["lr"] == 1e-3
        assert line["grad_norm"] > 0
        assert line["tokens"] > 0
        assert set(line["seconds"]) == set(PHASES)
        assert line["seconds"]["total"] > 0
    seen = Counter((line["epoch"], line["row"]) for line in trace)
    assert all(count == 1 for count in seen.values())
    assert {row for epoch, row in seen if epoch == 0} == set(range(10))
    assert all(line["version"] == line["step"] for line in trace)
    assert {line["rollout"] for line in trace} == {"rollout-0", "rollout-1"}
    assert {path.name for path in (folder / "logs").iterdir()} >= {
        "rollout-0.log",
        "rollout-1.log",
        "teacher-0.log",
        "teacher-1.log",
        "learner-0.log",
        "learner-1.log",
    }
    assert any((folder / "tensorboard").iterdir())
    assert any((folder / "checkpoints").glob("checkpoint_*"))
    assert (folder / "config.yaml").exists()


def test_with_staleness_one_rollouts_run_ahead_by_one_version_and_no_more(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = run(make_config(tmp_path / "run", "sync.max_staleness=1"))
    ages = [line["step"] - line["version"] for line in lines(folder / "trace.jsonl")]
    assert set(ages) == {0, 1}
    assert all(line["staleness_max"] <= 1 for line in lines(folder / "metrics.jsonl"))
    rows = Counter((line["epoch"], line["row"]) for line in lines(folder / "trace.jsonl"))
    assert all(count == 1 for count in rows.values())


def test_two_ranks_and_sharded_weights_train_what_one_rank_trains(tmp_path: Path, make_config: MakeConfig) -> None:
    """Accumulation on one rank, ZeRO-2 and ZeRO-3 on two: the same losses, λ and weights, to rounding."""
    one = run(make_config(tmp_path / "one", "learner.max_steps=2", "learner.max_tokens_per_microbatch=80"))
    original = dict(load_model(resolve(TINY), ModelConfig(dtype=Dtype.float32)).named_parameters())
    want = load_file(one / "model" / "model.safetensors")
    for stage in (2, 3):
        two = run(
            make_config(
                tmp_path / f"two-{stage}", "learner.max_steps=2", "learner.num_workers=2", f"learner.zero_stage={stage}"
            )
        )
        for a, b in zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True):
            for key in ("sft_loss", "kl_loss", "lambda", "loss", "grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-4)
            assert a["response_length"] == b["response_length"]
        found = load_file(two / "model" / "model.safetensors")
        assert found.keys() == want.keys()
        for name, tensor in want.items():
            moved = float((tensor - original[name].detach()).abs().max())
            assert moved > 0
            assert float((tensor - found[name]).abs().max()) < 0.05 * moved


@pytest.mark.parametrize("method", ["sdft", "opd"])
def test_the_other_methods_train_too(tmp_path: Path, make_config: MakeConfig, method: str) -> None:
    folder = run(make_config(tmp_path / "run", f"distill.method={method}", "learner.max_steps=2"))
    metrics = lines(folder / "metrics.jsonl")
    assert len(metrics) == 2
    if method == "opd":
        # The teacher reads what the student reads and has its weights: at the first step they agree to rounding.
        assert metrics[0]["kl_loss"] < 1e-3
    else:
        assert all(line["kl_loss"] is None and line["lambda"] is None for line in metrics)
        assert all(line["version"] is None for line in lines(folder / "trace.jsonl"))


def test_the_exported_model_answers_in_vllm_as_in_transformers_and_is_the_trained_one(
    undisturbed_run: Path,
) -> None:
    folder = undisturbed_run
    model: Any = load_model(str(folder / "model"), ModelConfig(dtype=Dtype.float32)).eval()
    state = max((folder / "checkpoints").rglob("mp_rank_00_model_states.pt"))
    trained = torch.load(state, weights_only=False)["module"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[f"model.{name}"])
    tokenizer = load_tokenizer(str(folder / "model"), ModelConfig())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What do bees make?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    out = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    assert vllm_greedy(str(folder / "model"), ids, 8) == out


def vllm_greedy(model: str, ids: list[int], count: int) -> list[int]:
    import ray

    from actors.runtime.cluster import actor_options

    @ray.remote
    def answer() -> list[int]:
        from actors.engine.vllm_engine import Engine

        engine = Engine(model, ModelConfig(dtype=Dtype.float32), RolloutConfig(kv_cache_gib=0.125), context=256)
        return engine.generate([ids], max_new_tokens=count, temperature=0.0)[0].token_ids

    options = actor_options(role="rollout", num_cpus=1, num_gpus=0, threads=1)
    found: list[int] = ray.get(answer.options(**options).remote(), timeout=400)
    return found


def test_an_actor_that_does_not_answer_in_time_ends_the_run_by_its_name(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "run", "rollout.timeout=0.01")
    with pytest.raises(RaftError, match=r"rollout-0: still starting after 0\.01 s"):
        run(config)
