"""A measure that needs choices is refused before anything starts where a test row names none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.evaluate.eval_actor import Questions
from actors.evaluate.score_actor import ScoreActor
from raft_ray import models
from raft_ray.config import Config, ModelConfig, settings
from raft_ray.data import Row
from raft_ray.errors import ConfigError, DataError
from raft_ray.preflight import preflight

QUESTION = {"prompt": "Which colour has grass?", "answer": "green", "choices": ["red", "green"]}


def _config(folder: Path, *overrides: str) -> Config:
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "What?", "answer": "This."}) + "\n")
    files = [f"data.train={folder}/train.jsonl", f"data.test={folder}/test.jsonl"]
    return settings.load("smoke", [*files, "refine.enabled=false", "distill.target=gold", *overrides])


def test_choices_reach_the_evaluation(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(QUESTION) + "\n")
    test = preflight(_config(tmp_path, "eval.domain_metric=letter")).test
    assert test is not None
    assert test[0].choices == ["red", "green"]


@pytest.mark.parametrize("metric", ["choice", "letter"])
def test_a_row_without_choices_is_named(tmp_path: Path, metric: str) -> None:
    rows = [QUESTION, {"prompt": "What?", "answer": "This."}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=rf"eval\.domain_metric={metric}: row 2 of .* names no choices"):
        preflight(_config(tmp_path, f"eval.domain_metric={metric}"))
    assert preflight(_config(tmp_path, "eval.domain_metric=exact")).test is not None


def test_more_choices_than_letters_are_refused_where_the_letter_counts(tmp_path: Path) -> None:
    row = {**QUESTION, "choices": ["green", *(f"colour {number}" for number in range(10))]}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (QUESTION, row)))
    with pytest.raises(ConfigError, match=r"domain_metric=letter: row 2 of .* more than 10 choices"):
        preflight(_config(tmp_path, "eval.domain_metric=letter"))
    assert preflight(_config(tmp_path, "eval.domain_metric=choice")).test is not None


def test_letters_are_measured_only_where_every_choice_has_one(tiny_model: Path) -> None:
    def row(choices: int) -> Row:
        names = [f"colour {number}" for number in range(choices)]
        return Row(0, 1, [{"role": "user", "content": "Which?"}], names[-1], [names[-1]], names)

    for choices, measures in ((10, ["choice", "letter"]), (11, ["choice"])):
        actor = ScoreActor(str(tiny_model), Config(), Questions([row(choices), row(2)], [], []))
        actor.chat = models.load_chat(str(tiny_model), ModelConfig())
        assert list(actor._domain()) == measures


def test_a_choice_that_fills_the_context_is_refused(tmp_path: Path) -> None:
    row = {**QUESTION, "choices": ["green", "red " * 400]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    keys = ("data.max_prompt=4096", "data.max_answer=4096")
    with pytest.raises(DataError, match=r"row 1: choice 2 has \d+ tokens, .* in a context of 512"):
        preflight(_config(tmp_path, *keys))


def test_questions_beyond_a_benchmark_are_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(QUESTION) + "\n")
    with pytest.raises(ConfigError, match=r"eval\.ifeval_rows=542: IFEval has 541 prompts"):
        preflight(_config(tmp_path, "eval.ifeval_rows=542"))


def test_mmlu_files_are_read_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "test.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(DataError, match=r"line 1: choices is missing"):
        preflight(_config(tmp_path, f"eval.mmlu={tmp_path}/mmlu"))
