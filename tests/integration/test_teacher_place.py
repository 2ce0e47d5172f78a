"""Learners that are their own teacher, for real: the run of teacher actors bit for bit, whoever dies, and ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listener import Listener, first_of, once
from run_files import lines, outcome

from raft_ray.config import Config

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(1200)]
MakeConfig = Callable[..., Config]
LORA = ("learner.lora.rank=4", "learner.lora.dropout=0.2", "learner.lr=0.01", "learner.checkpoint_every=1")

REHEARSAL = ("distill.rehearsal.count=5", "distill.rehearsal.max_new_tokens=12")
SMALL = ("eval.general_rows=3", "eval.general_max_new_tokens=8", "eval.domain_max_new_tokens=8")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "Tell me {n} things about rain."}}\n' for n in range(2, 9)))
    return f"distill.rehearsal.prompts={path}"


def run(config: Config) -> Path:
    from actors.run import train

    return train(config).parent


def of_any_place(folder: Path) -> dict[str, Any]:
    """What a run comes to, but for what its targets take in the object store, where learners put none."""
    found = outcome(folder)
    found["metrics"] = [{k: v for k, v in line.items() if k != "object_store_peak"} for line in found["metrics"]]
    return found | {"adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes()}


def test_learners_that_score_end_as_teacher_actors_would_have_them_also_killed_and_resumed(
    make_config: MakeConfig, tmp_path: Path, socket_path: Path, prompts: str
) -> None:
    # Two rollout batches per step, of rows with and without an answer, that a forward pass does not hold together.
    keys = (*LORA, *REHEARSAL, prompts, "distill.rehearsal.rows=2", "rollout.batch_rows=3", "teacher.tokens=256")
    own = run(make_config(tmp_path / "own", *keys, "learner.max_steps=3"))
    placed = (*keys, "teacher.place=learner")
    with Listener(socket_path, first_of([once("learner-0", "scoring", 1)])) as listener:
        folder = run(make_config(tmp_path / "learner", *placed, "learner.max_steps=2"))
    assert len(listener.killed) == 1
    run(make_config(folder, *placed, "learner.max_steps=3", "run.resume=true"))

    assert of_any_place(folder) == of_any_place(own)
    # A teacher actor opens a log before it loads a model.
    assert [path.name for path in (own / "logs").glob("teacher-*")] == ["teacher-0.log"]
    assert not list((folder / "logs").glob("teacher-*"))
    spans = lines(folder / "spans.jsonl")
    assert {span["who"] for span in spans} == {"rollout-0", "learner"}
    assert {span["step"] for span in spans if span["what"] == "score"} == {0, 1, 2}
    for line in lines(folder / "metrics.jsonl"):
        seconds = line["seconds"]
        assert 0 < seconds["teacher"] < seconds["total"]
        assert line["teacher_mass"] > 0


def test_ranks_of_zero_3_score_uneven_shares_while_evaluations_and_a_drift_budget_go_on(
    make_config: MakeConfig, tmp_path: Path, prompts: str
) -> None:
    # Five rows of a pass each, three of them one rank's.
    keys = ("distill.rehearsal.rows=1", "teacher.tokens=8", "learner.max_steps=2", "rollout.temperature=0")
    keys = (*LORA[:1], *LORA[2:], *REHEARSAL, *keys, prompts, "distill.balance=budget", "teacher.place=learner")
    one = run(make_config(tmp_path / "one", *keys))
    more = ("learner.num_workers=2", "learner.zero_stage=3", "sync.max_staleness=1")
    questions = tmp_path / "validation.jsonl"
    questions.write_text('{"prompt": "What do cows give?", "answer": "Milk"}\n')
    asked = ("eval.every=1", "eval.validation_ifeval_rows=0", f"eval.validation={questions}", *SMALL)
    two = run(make_config(tmp_path / "two", *keys, *more, *asked))
    for first, second in zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True):
        if first["step"] == 0:
            for key in ("sft_loss", "kl_loss", "teacher_mass", "grad_norm", "rows", "rehearsal_rows"):
                assert second[key] == pytest.approx(first[key], rel=1e-4), key
        assert second["drift"] >= 0
        assert second["target_bytes_per_token"] == first["target_bytes_per_token"]
    evaluated = lines(two / "evaluations.jsonl")
    assert [line["step"] for line in evaluated] == [0, 1, 2]
    assert evaluated[-1]["drift"] > evaluated[0]["drift"]
