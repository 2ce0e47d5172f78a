"""Response length, and the table that sums an evaluation up."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from raft_ray.evaluate.answers import Answer, length
from raft_ray.evaluate.table import summary_table


def test_lengths_by_hand() -> None:
    answers = [Answer("one two  three", [7] * 5, False), Answer("", [7], False), Answer("a\nb", [7] * 3, True)]
    assert length(answers) == {
        "words_mean": pytest.approx(5 / 3),
        "words_median": 2.0,
        "tokens_mean": 3.0,
        "truncated": pytest.approx(1 / 3),
        "n": 3,
    }


def test_no_answers_have_no_length() -> None:
    with pytest.raises(ValueError, match="no answers"):
        length([])


def _rows(evaluation: dict[str, Any]) -> list[list[str]]:
    console = Console(width=160, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(summary_table(evaluation))
    lines = [line for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_table_shows_retention_and_marks_what_is_missing() -> None:
    base = {
        "domain": {"accuracy": 0.125},
        "drift": {"kl": 0.0},
        "ifeval": {"prompt_strict": 0.2, "prompt_loose": 0.25},
        "length": {"words_mean": 80.0},
        "weight_distance": {"total": 0.0},
    }
    tuned = {
        "domain": {"accuracy": 0.5},
        "drift": {"kl": 0.04321},
        "ifeval": {"prompt_strict": 0.1, "prompt_loose": 0.15},
        "length": {"words_mean": 60.0},
        "weight_distance": {"total": 0.01234},
    }
    bare = dict.fromkeys(base)
    evaluation = {"main": "raft", "methods": {"base": base, "raft": tuned, "sft": bare}}
    expected = [
        ["base", "12.5", "0.0000", "20.0 / 25.0", "80", "0.0000"],
        ["raft", "50.0", "0.0432", "10.0 / 15.0 (50%)", "60 (75%)", "0.0123"],
        ["sft", "-", "-", "-", "-", "-"],
    ]
    assert _rows(evaluation) == expected
    assert _rows(evaluation["methods"]) == expected


def test_what_is_left_of_ifeval_has_its_interval_where_that_was_taken() -> None:
    base = {"ifeval": {"prompt_strict": 0.2, "prompt_loose": 0.25, "retention": None}}
    kept = {"retention": 0.9, "retention_low": 0.701, "retention_high": 1.1}
    methods = {"base": base, "raft": {"ifeval": {"prompt_strict": 0.18, "prompt_loose": 0.2, **kept}}}
    assert [row[3] for row in _rows(methods)] == ["20.0 / 25.0", "18.0 / 20.0 (90% [70% to 110%])"]


def test_a_base_of_zero_gives_no_retention() -> None:
    zero = {"ifeval": {"prompt_strict": 0.0, "prompt_loose": 0.0}}
    assert _rows({"base": zero, "raft": zero})[1][3] == "0.0 / 0.0"


def test_mmlu_has_a_column_for_each_number_of_examples() -> None:
    base = {"mmlu": {"0-shot": {"accuracy": 0.3}, "5-shot": {"accuracy": 0.4}}}
    tuned = {"mmlu": {"0-shot": {"accuracy": 0.27}, "5-shot": {"accuracy": 0.4}}}
    rows = _rows({"base": base, "sft": tuned, "opd": {"mmlu": None}})
    assert [row[4:6] for row in rows] == [["30.0", "40.0"], ["27.0 (90%)", "40.0 (100%)"], ["-", "-"]]


def test_open_questions_have_a_column_where_a_model_was_asked() -> None:
    methods = {"base": {"open": {"score": 0.8}}, "raft": {"open": {"score": 0.6}}, "sft": {"open": None}}
    assert [row[4] for row in _rows({"main": "raft", "methods": methods})] == ["80.0", "60.0 (75%)", "-"]
