"""Rehearsal for real: the tiny model writes its prompts, answers them, and is held to how it answered at first."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from listener import Listener, first_of, once
from run_files import lines, outcome

from raft_ray.config import Config
from raft_ray.distill.losses import BudgetBalancer
from raft_ray.errors import RaftError

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]

OWN = ["distill.rehearsal.rows=2", "distill.rehearsal.count=5", "distill.rehearsal.max_new_tokens=12"]
FOUR = [*OWN, "learner.max_steps=4", "learner.checkpoint_every=2"]


def run(config: Config) -> Path:
    from actors.run import train

    return train(config).parent


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me {n} things about rain."}) + "\n" for n in range(2, 9)))
    return path


@pytest.fixture(scope="module")
def whole(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """Four steps that nothing disturbs."""
    return run(make_config(tmp_path_factory.mktemp("rehearsal") / "whole", *FOUR))


def test_a_run_whose_model_wrote_its_prompts_is_resumed_bit_for_bit(
    tmp_path: Path, make_config: MakeConfig, whole: Path
) -> None:
    metrics, trace = lines(whole / "metrics.jsonl"), lines(whole / "trace.jsonl")
    assert len(lines(whole / "rehearsal.jsonl")) == 5
    (event,) = (line for line in lines(whole / "events.jsonl") if line["what"] == "rehearsal")
    assert event["text"].startswith("5 prompts that the model wrote, ")
    # At first the student is its own teacher.
    assert metrics[0]["rehearsal_kl"] < 1e-3 < metrics[-1]["rehearsal_kl"]
    for line in metrics:
        assert (line["rows"], line["rehearsal_rows"]) == (4, 2)
        assert 1 <= line["response_length"] <= 8
        assert 1 <= line["rehearsal_length"] <= 12
        total = line["sft_loss"] + line["lambda"] * line["kl_loss"] + 2.0 * line["rehearsal_kl"]
        assert line["loss"] == pytest.approx(total, rel=1e-9)
    # Their answers have a limit of their own.
    assert max(line["rehearsal_length"] for line in metrics) > 8
    seen = Counter((line["epoch"], line["row"]) for line in trace)
    assert set(seen.values()) == {1}
    assert {row for epoch, row in seen if epoch == 0} == set(range(15))

    parts = run(make_config(tmp_path / "parts", *OWN, "learner.max_steps=2", "learner.checkpoint_every=2"))
    resumed = make_config(parts, *FOUR, "run.resume=true")
    written = (parts / "rehearsal.jsonl").read_bytes()
    shutil.move(parts / "rehearsal.jsonl", tmp_path)
    with pytest.raises(RaftError, match=r"rehearsal\.jsonl: gone, .*; put it back"):
        run(resumed)
    shutil.move(tmp_path / "rehearsal.jsonl", parts)
    run(resumed)
    assert (parts / "rehearsal.jsonl").read_bytes() == written == (whole / "rehearsal.jsonl").read_bytes()
    assert outcome(parts) == outcome(whole)


def test_deaths_change_nothing_in_a_run_that_rehearses(
    tmp_path: Path, make_config: MakeConfig, whole: Path, socket_path: Path
) -> None:
    rules = [
        once("rollout-0", "generating", 1),
        once("teacher-0", "scoring", count=4),
        once("learner-0", "backward", 3),
    ]
    with Listener(socket_path, first_of(rules)) as listener:
        folder = run(make_config(tmp_path / "run", *FOUR, "learner.max_restarts=3"))
    assert len(listener.killed) == 3
    assert outcome(folder) == outcome(whole)


def test_the_original_models_answers_are_replayed_without_rollouts_and_resumed_bit_for_bit(
    tmp_path: Path, make_config: MakeConfig, prompts: Path
) -> None:
    keys = [*OWN, "distill.method=sft", "distill.rehearsal.kind=replay", f"distill.rehearsal.prompts={prompts}"]
    whole = run(make_config(tmp_path / "whole", *keys, "learner.max_steps=4", "learner.checkpoint_every=2"))
    answers = lines(whole / "rehearsal.jsonl")
    assert len(answers) == 5
    assert all(isinstance(line["answer"], str) and isinstance(line["truncated"], bool) for line in answers)
    assert not list((whole / "logs").glob("rollout-*"))
    metrics = lines(whole / "metrics.jsonl")
    for line in metrics:
        assert (line["rows"], line["rehearsal_rows"], line["rehearsal_length"]) == (4, 2, None)
        assert line["loss"] == pytest.approx(line["sft_loss"] + 2.0 * line["rehearsal_ce"], rel=1e-9)
        assert line["rehearsal_ce"] > 0

    parts = run(make_config(tmp_path / "parts", *keys, "learner.max_steps=2", "learner.checkpoint_every=2"))
    assert (parts / "rehearsal.jsonl").read_bytes() == (whole / "rehearsal.jsonl").read_bytes()
    run(make_config(parts, *keys, "learner.max_steps=4", "learner.checkpoint_every=2", "run.resume=true"))
    assert outcome(parts) == outcome(whole)


def test_the_kl_on_given_answers_needs_no_engine_and_is_resumed_bit_for_bit(
    tmp_path: Path, make_config: MakeConfig, prompts: Path
) -> None:
    asft = ["distill.method=opd", "distill.off_policy=true", "distill.loss=dft", "distill.temperature=1.0"]
    asft += ["distill.balance=fixed", "distill.fixed_lambda=0.1", "distill.rehearsal.kind=replay_kl"]
    keys = [*OWN, *asft, f"distill.rehearsal.prompts={prompts}", "learner.checkpoint_every=1"]
    whole = run(make_config(tmp_path / "whole", *keys, "learner.max_steps=2"))
    metrics = lines(whole / "metrics.jsonl")
    # At first the student is the original model; what it is trained on takes it away from there.
    assert metrics[0]["kl_loss"] < 1e-3 < metrics[1]["kl_loss"]
    assert metrics[0]["rehearsal_kl"] < 1e-3 < metrics[1]["rehearsal_kl"]
    for line in metrics:
        total = line["sft_loss"] + 0.1 * line["kl_loss"] + 2.0 * line["rehearsal_kl"]
        assert line["loss"] == pytest.approx(total, rel=1e-9)
        assert line["staleness"] == 0
    parts = run(make_config(tmp_path / "parts", *keys, "learner.max_steps=1"))
    run(make_config(parts, *keys, "learner.max_steps=2", "run.resume=true"))
    assert outcome(parts) == outcome(whole)


def test_plain_fine_tuning_rehearses_too_and_two_sharded_ranks_do_what_one_does(
    tmp_path: Path, make_config: MakeConfig, prompts: Path
) -> None:
    keys = [*OWN, "distill.method=sft", "learner.max_steps=2", f"distill.rehearsal.prompts={prompts}"]
    one = run(make_config(tmp_path / "one", *keys, "learner.max_tokens_per_microbatch=80"))
    two = run(make_config(tmp_path / "two", *keys, "learner.num_workers=2", "learner.zero_stage=3"))
    for a, b in zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True):
        assert a["kl_loss"] is a["lambda"] is a["response_length"] is None
        assert a["loss"] == pytest.approx(a["sft_loss"] + 2.0 * a["rehearsal_kl"], rel=1e-9)
        for key in ("sft_loss", "rehearsal_kl", "loss", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6)
        assert a["rehearsal_length"] == b["rehearsal_length"]
    sampled = [line["row"] for line in lines(one / "trace.jsonl") if line["version"] is not None]
    assert len(sampled) == 4
    assert set(sampled) <= set(range(10, 15))


def test_a_drift_budget_steers_lambda_and_is_resumed_bit_for_bit(
    tmp_path: Path, make_config: MakeConfig, prompts: Path
) -> None:
    keys = [*OWN, f"distill.rehearsal.prompts={prompts}", "distill.balance=budget", "learner.checkpoint_every=2"]
    whole = run(make_config(tmp_path / "whole", *keys, "learner.max_steps=4"))
    parts = run(make_config(tmp_path / "parts", *keys, "learner.max_steps=2"))
    run(make_config(parts, *keys, "learner.max_steps=4", "run.resume=true"))
    assert outcome(parts) == outcome(whole)
    balancer = BudgetBalancer(0.05)
    for line in lines(whole / "metrics.jsonl"):
        assert line["lambda"] == balancer.weight
        balancer.update(line["drift"])
        assert line["drift_mean"] == balancer.mean
        total = line["sft_loss"] + line["lambda"] * (line["kl_loss"] + 2.0 * line["rehearsal_kl"])
        assert line["loss"] == pytest.approx(total, rel=1e-9)


def test_plain_fine_tuning_keeps_a_drift_budget_too(tmp_path: Path, make_config: MakeConfig, prompts: Path) -> None:
    keys = [*OWN, f"distill.rehearsal.prompts={prompts}", "distill.balance=budget", "distill.method=sft"]
    for line in lines(run(make_config(tmp_path / "run", *keys, "learner.max_steps=2")) / "metrics.jsonl"):
        assert line["kl_loss"] is None
        total = line["sft_loss"] + line["lambda"] * 2.0 * line["rehearsal_kl"]
        assert line["loss"] == pytest.approx(total, rel=1e-9)
