"""The judge that is a language model, the thinking it does first, and the prompts that make a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raft_ray.models.templates import load_prompt, prompt_hash
from raft_ray.models.thinking import without_thinking
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.judges import JUDGE_FIELDS, VERDICT_SCHEMA, Case, LlmJudge, NoVerdictError, Verdict, read_verdict

TEMPLATE = "Q {prompt}\nR {answer}\nC {candidate}"


class Model:
    """A model that replies by a function of the prompt; keeps what it was asked."""

    identity = "invented"

    def __init__(self, reply: Callable[[str], Completion]) -> None:
        self.reply = reply
        self.asked: list[str] = []
        self.options: dict[str, Any] = {}

    def __call__(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        self.options = options
        self.asked += [request.chat[-1]["content"] for request in requests]
        return [self.reply(request.chat[-1]["content"]) for request in requests]


def verdict(score: object, reason: str = "so it is") -> Completion:
    return Completion(json.dumps({"reason": reason, "score": score}))


def test_a_judge_asks_about_every_case_at_once_greedily_and_with_a_schema() -> None:
    model = Model(lambda text: verdict(0.9 if "C Au" in text else 0.1))
    judge = LlmJudge("big", model, TEMPLATE, max_new_tokens=99, seed=4)
    cases = [Case("What {answer}?", "gold {candidate}", text) for text in ("Au", "Ag")]
    assert judge.score(cases) == [0.9, 0.1]
    assert judge.verdicts(cases) == [Verdict(score=0.9, reason="so it is"), Verdict(score=0.1, reason="so it is")]
    del model.asked[2:]
    assert model.asked == [f"Q What {{answer}}?\nR gold {{candidate}}\nC {text}" for text in ("Au", "Ag")]
    assert model.options == {"temperature": 0.0, "max_new_tokens": 99, "seed": 4, "schema": VERDICT_SCHEMA}
    assert judge.failures == {}


def test_nonsense_is_no_score_and_is_counted() -> None:
    replies = {
        "a": verdict(0.5),
        "b": Completion("I think it is fine."),
        "c": verdict(7),
        "d": Completion("", failed="HTTP 500"),
        "e": Completion("", too_long=True),
        "f": Completion('{"reason": "it goes on and', truncated=True),
        "g": Completion("no"),
    }
    judge = LlmJudge("big", Model(lambda text: replies[text[-1]]), TEMPLATE, max_new_tokens=99)
    assert judge.score([Case("q", "gold", name) for name in replies]) == [0.5, *[None] * 6]
    assert judge.failures == {"not_json": 2, "out_of_range": 1, "failed": 1, "too_long": 1, "truncated": 1}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reason": "x", "score": 1}', 1.0),
        ('  {"score": 0.25, "reason": "x", "more": []}\n', 0.25),
        ('{"score": 0}', 0.0),
        ('```json\n{"reason": "x", "score": 0.5}\n```', 0.5),
        ('```\n{"reason": "x", "score": 0.5}```', 0.5),
        ('<think>{"score": 0}</think>\n{"reason": "x", "score": 0.5}', 0.5),
        ('it is good </think> ```json\n{"score": 0.5}\n```', 0.5),
    ],
)
def test_a_verdict_is_read_alone_in_a_fence_or_after_thinking(text: str, score: float) -> None:
    assert read_verdict(Completion(text)).score == score


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not_json"),
        ("0.5", "no_score"),
        ("[0.5]", "no_score"),
        ('{"reason": "x"}', "no_score"),
        ('{"reason": "x", "score": null}', "no_score"),
        ('{"reason": "x", "score": "0.5"}', "no_score"),
        ('{"reason": "x", "score": true}', "no_score"),
        ('{"reason": "x", "score": 1.0001}', "out_of_range"),
        ('{"reason": "x", "score": -0.1}', "out_of_range"),
        ('{"reason": "x", "score": 1e999}', "out_of_range"),
        ('{"reason": "x", "score": NaN}', "out_of_range"),
        ('{"reason": "x", "score": 0.5', "not_json"),
        ('Sure! {"reason": "x", "score": 0.5}', "not_json"),
        ('{"score": 0.5} {"score": 0.6}', "not_json"),
        ('<think>{"score": 0.5}', "not_json"),
        ("[" * 100_000, "not_json"),
    ],
)
def test_anything_else_is_no_verdict(text: str, reason: str) -> None:
    with pytest.raises(NoVerdictError, match=reason):
        read_verdict(Completion(text))


@given(st.floats(0, 1), st.text())
@example(0.5, "<think>")
def test_every_score_in_range_is_read_as_it_is(score: float, reason: str) -> None:
    assert read_verdict(verdict(score, reason)).score == score


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    judge = LlmJudge("big", Model(lambda _: Completion(text)), TEMPLATE, max_new_tokens=99)
    (score,) = judge.score([Case("q", "gold", "candidate")])
    assert (score is None) == (judge.failures.total() == 1)
    assert score is None or 0 <= score <= 1


def test_the_shipped_prompt_has_its_fields_and_asks_for_what_is_read() -> None:
    template = load_prompt("judge", JUDGE_FIELDS, "refine.judge_prompt")
    for name in VERDICT_SCHEMA["required"]:
        assert f'"{name}"' in template


def test_the_schema_asks_for_what_is_read() -> None:
    assert set(VERDICT_SCHEMA["required"]) == set(Verdict.model_fields)
    for score in VERDICT_SCHEMA["properties"]["score"]["enum"]:
        assert read_verdict(verdict(score)).score == score


def test_a_prompt_is_told_by_its_text() -> None:
    assert prompt_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert prompt_hash("abc ") != prompt_hash("abc")


BLOCKS = [
    ("<think>", "</think>"),
    ("<Thinking>", "</Thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]
words = st.text(st.sampled_from("abc \n.,"))


@given(st.sampled_from(BLOCKS), words, words, words)
def test_thinking_is_left_out_closed_or_not(block: tuple[str, str], before: str, thought: str, answer: str) -> None:
    begin, end = block
    assert without_thinking(before + begin + thought + end + answer) == (before + answer).strip()
    assert without_thinking(begin + thought + end) == ""
    assert without_thinking(thought + end + answer) == answer.strip()
    assert without_thinking(before + begin + thought) == before.strip()
    assert without_thinking(begin + thought + begin + thought + end + thought + end + answer) == answer.strip()
    assert without_thinking(begin + thought + end + answer + begin + thought + end) == answer.strip()


@given(words)
def test_a_text_without_thinking_stays_as_it_is(text: str) -> None:
    assert without_thinking(text) == text.strip()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>hm</think><answer>Au</answer>", "Au"),
        ("<think>hm</think>\n<answer>Au", "Au"),
        ("<answer>Au</answer>", "<answer>Au</answer>"),
        ("<|begin_of_thought|>x<|end_of_thought|><|begin_of_solution|>Au<|end_of_solution|>", "Au"),
        ("analysisThe user wants gold.assistantfinalIt is Au.", "It is Au."),
        ("analysis of gold", "analysis of gold"),
        ("a < b and I think > c", "a < b and I think > c"),
    ],
)
def test_answers_after_thinking_are_unwrapped(text: str, answer: str) -> None:
    assert without_thinking(text) == answer
