"""A judge that is a model: its prompt, its schema, and what counts as a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from raft_ray.refine.generation import Ask, Generation
from raft_ray.refine.judges import Case
from raft_ray.refine.llm_judge import SCHEMA, LlmJudge, parsed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"reason": "fine", "score": 0.75}', 0.75),
        ('{"score": 1}', 1.0),
        (' \n{"score": 0, "more": []}\n', 0.0),
        ('```json\n{"score": 0.5}\n```', 0.5),
        ('<think>{"score": 1}</think>{"score": 0.25}', 0.25),
        ("0.8", "no score"),
        ('{"score": "0.8"}', "no score"),
        ('{"score": true}', "no score"),
        ('{"reason": "fine"}', "no score"),
        ("[0.5]", "no score"),
        ('{"score": 1.5}', "out of range"),
        ('{"score": -0.1}', "out of range"),
        ('{"score": NaN}', "out of range"),
        ("I would say 0.8.", "not JSON"),
        ('{"reason": "cut off', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_only_a_number_from_0_to_1_in_json_is_a_score(text: str, found: float | str) -> None:
    assert parsed(text) == found


def test_a_judge_asks_with_its_schema_and_counts_what_is_no_score() -> None:
    asked: dict[str, Any] = {}

    class Model:
        identity = "m"

        def __call__(self, asks: Sequence[Ask], **options: Any) -> list[Generation]:
            asked.update(options, chats=[each.chat for each in asks])
            texts = ['{"score": 0.5}', "well", '{"score": 7}', ""]
            return [Generation(text, failed=None if text else "down") for text in texts]

    judge = LlmJudge("strict", Model(), "Q {prompt} A {answer} C {candidate}")
    cases = [Case("q?", "{candidate}", text) for text in ("a", "b", "c", "d")]
    assert judge.score(cases) == [0.5, None, None, None]
    assert judge.failures == {"not JSON": 1, "out of range": 1, "failed": 1}
    assert asked["chats"][0] == [{"role": "user", "content": "Q q? A {candidate} C a"}]
    assert (asked["temperature"], asked["schema"]) == (0.0, SCHEMA)
