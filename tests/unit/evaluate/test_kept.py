"""Answers of an evaluation that was killed: kept call by call, and taken only by the call that wrote them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.engine.vllm_engine import Completion
from actors.evaluate import eval_actor
from actors.evaluate.eval_actor import EvalActor, Questions
from raft_ray import models
from raft_ray.config import Config
from raft_ray.errors import RaftError
from raft_ray.evaluate.ifeval import load_prompts
from raft_ray.evaluate.kept import KeptAnswers, Place, Written, forget

FIRST = {Place("ifeval", 0, 0, 0): Written([5, 6], False), Place("general", 3, 0, 0): Written([], True)}


def test_what_was_kept_is_found_again_by_model_and_call_until_it_is_forgotten(tmp_path: Path) -> None:
    kept = KeptAnswers(str(tmp_path))
    second = {Place("ifeval", 0, 0, 1): Written([7], True)}
    kept.put("sft/seed0", "a", FIRST)
    kept.put("sft/seed0", "b", second)
    assert KeptAnswers(str(tmp_path)).get("sft/seed0") == {"a": FIRST, "b": second}
    assert kept.get("sft") == kept.get("base") == {}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")} == {
        "answers/sft/seed0/ifeval.jsonl",
        "answers/sft/seed0/general.jsonl",
    }
    forget(tmp_path)
    forget(tmp_path)
    assert kept.get("sft/seed0") == {}


def test_a_line_that_was_cut_short_is_no_answer_and_a_broken_one_is_named(tmp_path: Path) -> None:
    kept, path = KeptAnswers(str(tmp_path)), tmp_path / "answers/base/ifeval.jsonl"
    kept.put("base", "a", FIRST)
    path.write_bytes(path.read_bytes()[:-5])
    assert kept.get("base") == {"a": {Place("general", 3, 0, 0): Written([], True)}}
    kept.put("base", "a", FIRST)
    assert kept.get("base") == {"a": FIRST}
    path.write_text('{"call": "a", "question": 0, "turn": 0, "sample": 0, "token_ids": "no", "truncated": false}\n')
    with pytest.raises(RaftError, match=r"ifeval\.jsonl line 1: no answer with `token_ids`"):
        kept.get("base")


class _Engine:
    """Answers with an id that a prompt's length decides; dies when it is to answer the call `dies_at`."""

    calls = 0
    dies_at = -1

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def generate(self, prompts: list[list[int]], **_: Any) -> list[Completion]:
        if _Engine.calls == _Engine.dies_at:
            raise RuntimeError("killed")
        _Engine.calls += 1
        return [Completion([len(ids) % 100 + 10], truncated=False) for ids in prompts]


Evaluated = Callable[..., tuple[dict[str, Any], int, int]]


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """Evaluates the tiny model with a run folder's answers: what was measured, the calls that it took, and how many
    answers there were of no use."""

    def evaluate(
        run: str, dies_at: int = -1, folder: str = models.TINY, **asked: Any
    ) -> tuple[dict[str, Any], int, int]:
        config = Config()
        config.model.path, config.run.dir = models.TINY, str(tmp_path / run)
        config.eval.ifeval_samples = 2
        for key, value in asked.items():
            setattr(config.eval, key, value)
        questions = Questions([], load_prompts(60, seed=0), [f"Hello {i}?" for i in range(60)])
        actor = EvalActor(models.resolve(folder), config, questions, KeptAnswers(config.run.dir))
        sizes = actor.start()
        assert len(sizes) == 3
        _Engine.calls, _Engine.dies_at = 0, dies_at
        actor.load("base", models.resolve(folder))
        for batch in range(len(sizes)):
            actor.answer(batch)
        return actor.measure() | {"seconds": None}, _Engine.calls, actor.unused()

    monkeypatch.setattr("actors.engine.vllm_engine.Engine", _Engine)
    monkeypatch.setattr(eval_actor, "log_to_file", lambda *_: None)
    return evaluate


def test_a_killed_evaluation_takes_the_calls_that_it_has_made_and_ends_as_the_whole_one(evaluated: Evaluated) -> None:
    whole = evaluated("whole")
    assert whole[1:] == (3, 0)
    with pytest.raises(RuntimeError, match="killed"):
        evaluated("cut", dies_at=2)
    assert evaluated("cut") == (whole[0], 1, 0)
    assert evaluated("cut") == (whole[0], 0, 0)


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        ({"temperature": 1.0}, 3),
        ({"general_max_new_tokens": 9}, 1),
        # Decides nothing that a model writes.
        ({"samples": 1}, 0),
    ],
)
def test_only_calls_with_the_same_settings_are_taken(evaluated: Evaluated, asked: dict[str, Any], calls: int) -> None:
    evaluated("run")
    _, made, unused = evaluated("run", **asked)
    assert (made, unused) == (calls, {0: 0, 1: 60, 3: 180}[calls])


def test_no_answer_of_other_weights_is_taken(evaluated: Evaluated, tmp_path: Path, tiny_model: Path) -> None:
    evaluated("run")
    shutil.copytree(tiny_model, tmp_path / "same")
    assert evaluated("run", folder=str(tmp_path / "same"))[1:] == (0, 0)
    weights = tmp_path / "same" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert evaluated("run", folder=str(tmp_path / "same"))[1:] == (3, 180)
