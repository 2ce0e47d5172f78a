"""The questions that are asked while a method trains: held out, scored as at the end, and cut the same for any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray.config import Config, settings
from raft_ray.config.checks import check
from raft_ray.data import read_table
from raft_ray.errors import ConfigError, DataError
from raft_ray.evaluate import ifeval
from raft_ray.evaluate.answers import Answer
from raft_ray.evaluate.drift import Drift
from raft_ray.evaluate.validation import (
    CHUNK_SIZE,
    evaluation_line,
    make_validation_set,
    validation_rows,
)
from raft_ray.models import TINY, load_chat, resolve


def config_of(*keys: str) -> Config:
    return settings.load("smoke", ["data.train=train.jsonl", "data.test=null", "data.limit=null", *keys])


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(40)))
    return str(path)


def count(messages: Any, answer: str) -> tuple[int, int]:
    return 1, 1


def test_rows_held_out_are_the_seeds_and_in_no_order_of_training(source: str) -> None:
    config = config_of("eval.every=1", "eval.validation_rows=7", "eval.validation_ifeval_rows=0")
    whole = read_table(source, config.data, split="train")
    train, held = validation_rows(config, whole, count)
    assert (len(train), len(held)) == (33, 7)
    prompts = {row.prompt for row in train}
    assert prompts.isdisjoint(row.prompt for row in held)
    assert prompts | {row.prompt for row in held} == {row.prompt for row in whole}
    assert [row.index for row in train] == list(range(33))
    assert all(row.prompt == f"What is {row.line - 1}?" for row in train)
    again, same = validation_rows(config, whole, count)
    assert same == held
    assert list(again) == list(train)
    config.run.seed += 1
    assert validation_rows(config, whole, count)[1] != held

    config.eval.validation_rows = 21
    with pytest.raises(
        ConfigError, match=r"^eval\.validation_rows=21: would hold out more than half of the 40 training"
    ):
        validation_rows(config, whole, count)


def test_another_source_of_questions_holds_nothing_out_and_is_named_where_it_is_missing(source: str) -> None:
    config = config_of("eval.every=1", f"eval.validation={source}", "eval.validation_rows=5")
    whole = read_table(source, config.data, split="train")
    train, rows = validation_rows(config, whole, count)
    assert train is whole
    assert len(rows) == 5
    config.eval.validation = "gone.jsonl"
    with pytest.raises(DataError, match=r"^eval\.validation=gone\.jsonl: no such file"):
        validation_rows(config, whole, count)
    config.eval.validation, config.eval.validation_ifeval_rows = source, 600
    with pytest.raises(ConfigError, match=r"^eval\.validation_ifeval_rows=600: IFEval has 541 prompts"):
        validation_rows(config, whole, count)


def test_answers_are_scored_as_at_the_end_and_shown_by_their_share_of_the_base(source: str) -> None:
    config = config_of("eval.every=1", "eval.general_rows=2", "eval.validation_ifeval_rows=3", "eval.validation_rows=4")
    _, rows = validation_rows(config, read_table(source, config.data, split="train"), count)
    asked = make_validation_set(config, load_chat(resolve(TINY), config.model), 10**6, rows[:2])
    assert sorted(index for part in asked.parts() for index in part) == list(range(7))

    def answers(texts: dict[str, str]) -> dict[int, Answer]:
        found = ((index, one, texts[one.kind]) for index, one in enumerate(asked.questions))
        return {
            index: Answer(text, list(range(len(text.split()))), False, one.correct(text)) for index, one, text in found
        }

    right = rows[0].answer
    base = answers({"domain": right, "general": "two words", "ifeval": "Yes."})
    figures = asked.measure(base)
    assert (figures["accuracy"], figures["metric"], figures["words"], figures["too_long"]) == (0.5, "contains", 2, 0)
    prompts = [one.ifeval for one in asked.questions if one.ifeval is not None]
    assert figures["ifeval"] == ifeval.score(prompts, ["Yes."] * 3)["prompt_strict"]
    first = evaluation_line(0, figures, Drift(0.0, 0.0, 1.0, 4, 2), None, 1.0)
    assert first["of_base"]["accuracy"] == first["of_base"]["words"] == 1
    later = asked.measure(answers({"domain": "no", "general": "one", "ifeval": "Yes."}))
    line = evaluation_line(3, later, Drift(0.2, 0.3, 0.9, 4, 2), first, 1.0)
    assert (line["drift"], line["drift_first"], line["of_base"]["words"], line["of_base"]["accuracy"]) == (
        0.2,
        0.3,
        0.5,
        0,
    )
    # What has no room is not asked, and counts as wrong.
    assert asked.measure({})["too_long"] == 7
    assert asked.measure({})["accuracy"] == 0


def test_calls_of_engines_are_cut_alike_however_many_engines_there_are(source: str) -> None:
    config = config_of("eval.every=1", "eval.validation_ifeval_rows=0", "eval.general_rows=null")
    chat = load_chat(resolve(TINY), config.model)
    rows = list(read_table(source, config.data, split="train"))
    asked = make_validation_set(config, chat, 10**6, rows)
    assert {len(part) for part in asked.parts()[:-1]} == {CHUNK_SIZE}
    limits = [one.limit for one in asked.questions]
    assert limits == sorted(limits, reverse=True)
    assert asked.digest() != make_validation_set(config, chat, 10**6, rows[1:]).digest()
    with pytest.raises(DataError, match=r"^eval\.general: no prompt leaves room for an answer in a context of 1;"):
        make_validation_set(config, chat, 1, rows)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["eval.keep=best"], r"eval\.keep=best: nothing is evaluated while a method trains; set eval\.every"),
        (["eval.patience=2"], r"eval\.patience=2: nothing is evaluated"),
        (["eval.max_drift=0.1"], r"eval\.max_drift=0\.1: nothing is evaluated"),
        (["eval.validation=a.jsonl"], r"eval\.validation=a\.jsonl: nothing is evaluated"),
        (["eval.every=5", "eval.max_drift=0.1"], r"eval\.max_drift=0\.1: decides nothing; set eval\.keep=best"),
        (
            ["eval.every=5", "distill.method=opd", "distill.off_policy=true"],
            r"eval\.every=5: there are no engines to ask where trajectories are given",
        ),
        (["eval.every=5", "eval.domain_metric=letter"], r"eval\.domain_metric=letter: is not taken while"),
        (
            ["eval.every=5", "eval.validation=train.jsonl"],
            r"eval\.validation=train\.jsonl: these are the training rows",
        ),
        (
            ["eval.every=5", "data.test=q.jsonl", "eval.validation=q.jsonl"],
            r"eval\.validation=q\.jsonl: these are the test",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_its_key(keys: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        check(config_of(*keys))
    check(config_of("eval.every=5", "eval.keep=best", "eval.max_drift=0.1", "eval.patience=2"))
