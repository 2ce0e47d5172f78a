"""Evaluations while a method trains, for real: engines answer, the learner measures drift, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listener import Listener, first_of, once
from run_files import lines, outcome

from raft_ray.config import Config
from raft_ray.runs.trained import read_trained

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]

SMALL = ["eval.general_rows=3", "eval.general_max_new_tokens=12", "eval.domain_max_new_tokens=8"]
WATCH = [*SMALL, "eval.every=1", "eval.validation_ifeval_rows=2", "eval.ifeval_max_new_tokens=8"]
FOUR = ["learner.max_steps=4", "learner.checkpoint_every=2"]


def run(config: Config) -> Path:
    from actors.run import train

    return train(config).parent


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / "evaluations.jsonl")]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("validation") / "validation.jsonl"
    asked = [("What do cows give?", "Milk"), ("Is ice cold?", "Yes"), ("Which colour has the sky?", "Blue")]
    path.write_text("".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in asked))
    return f"eval.validation={path}"


@pytest.fixture(scope="module")
def watched(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, questions: str
) -> Path:
    return run(make_config(tmp_path_factory.mktemp("watched") / "run", *WATCH, *FOUR, questions, "eval.keep=best"))


def test_evaluations_are_on_record_and_training_is_what_it_is_without(
    watched: Path, undisturbed_run: Path, tmp_path: Path, make_config: MakeConfig, questions: str
) -> None:
    found = evaluations(watched)
    assert [line["step"] for line in found] == [0, 1, 2, 3, 4]
    assert found[0]["drift"] == 0
    assert found[0]["of_base"]["words"] == 1
    assert 0 < found[1]["drift"] < found[-1]["drift"]
    for line in found:
        assert line["n"] == {"domain": 3, "ifeval": 2, "general": 3}
    ours, theirs = outcome(watched), outcome(undisturbed_run)
    assert ours["metrics"] == theirs["metrics"]
    assert ours["trace"] == theirs["trace"]
    last = run(make_config(tmp_path / "last", *WATCH, *FOUR, questions))
    assert outcome(last) == theirs
    assert evaluations(last) == found


def test_a_run_with_deaths_that_is_resumed_has_the_same_evaluations_and_the_same_best_model(
    watched: Path, tmp_path: Path, make_config: MakeConfig, questions: str, socket_path: Path
) -> None:
    keys = [*WATCH, questions, "eval.keep=best", "learner.checkpoint_every=2", "learner.max_restarts=3"]
    rules = [once("rollout-0", "evaluating", 1), once("learner-0", "backward", 3)]
    with Listener(socket_path, first_of(rules)) as listener:
        parts = run(make_config(tmp_path / "parts", *keys, "learner.max_steps=2"))
        run(make_config(parts, *keys, "learner.max_steps=4", "run.resume=true"))
    assert len(listener.killed) == 2
    assert evaluations(parts) == evaluations(watched)
    assert outcome(parts) == outcome(watched)
    assert not (parts / "best").exists()
    made = read_trained(parts / "model")
    assert made == read_trained(watched / "model")
    assert made is not None
    assert made.weights_of is not None


def test_training_ends_early_and_a_resumed_run_does_not_go_on(tmp_path: Path, make_config: MakeConfig) -> None:
    # Within so little drift lies no evaluation: the one with the least, the first, is the best.
    keys = [*WATCH, "eval.validation_rows=2", "eval.patience=1", "eval.max_drift=1e-9", "learner.max_steps=4"]
    folder = run(make_config(tmp_path / "run", *keys, "distill.method=sft"))
    assert [line["step"] for line in evaluations(folder)] == [0, 1, 2]
    assert len(lines(folder / "metrics.jsonl")) == 2
    assert {line["row"] for line in lines(folder / "trace.jsonl")} <= set(range(8))
    made = read_trained(folder / "model")
    assert made is not None
    assert (made.steps, made.weights_of) == (4, 2)
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    run(make_config(folder, *keys, "distill.method=sft", "run.resume=true"))
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_two_sharded_ranks_measure_the_drift_that_one_does(
    tmp_path: Path, make_config: MakeConfig, questions: str
) -> None:
    keys = [*SMALL, "eval.every=1", "eval.validation_ifeval_rows=0", questions, "learner.max_steps=2"]
    one = run(make_config(tmp_path / "one", *keys, "distill.method=sft"))
    two = run(
        make_config(tmp_path / "two", *keys, "distill.method=sft", "learner.num_workers=2", "learner.zero_stage=3")
    )
    for a, b in zip(evaluations(one), evaluations(two), strict=True):
        assert a["drift"] == pytest.approx(b["drift"], rel=1e-3, abs=1e-9)
    assert evaluations(two)[-1]["drift"] > 0
