"""What follows from judges' scores, worked by hand, and what judges read."""

from __future__ import annotations

from typing import Any

import pytest

from raft_ray.config import Config, DomainMetric, EvalConfig, RefineModelConfig
from raft_ray.data import Row
from raft_ray.errors import ConfigError
from raft_ray.evaluate.domain import summary
from raft_ray.evaluate.judged import (
    JudgeResult,
    Metered,
    chat_of,
    check_judges,
    conversation,
    domain_cases,
    domain_part,
    load_judge_prompts,
    majority,
    open_cases,
    open_part,
    open_verdicts,
)
from raft_ray.evaluate.open_questions import OpenQuestion
from raft_ray.models.templates import prompt_hash
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.judges import VERDICT_SCHEMA, Case

USAGE = {"asks": 1, "input_tokens": 1, "output_tokens": 2, "cost": 0.0}
ONE = OpenQuestion(("Name a fruit.",), ("Apple.",), "things")
TWO = OpenQuestion(("Say hi.", "Again."), (None, "Hi."), "talk")


def opinion(*scores: float | None, **failures: int) -> JudgeResult:
    return JudgeResult(list(scores), ["" if score is None else f"{score}!" for score in scores], failures, USAGE)


@pytest.mark.parametrize(
    ("votes", "right", "unjudged"),
    [
        ([1.0], True, 0),
        ([0.5], True, 0),
        ([0.4], False, 0),
        ([1.0, 0.0], False, 0),
        ([0.5, 0.5, 0.0], True, 0),
        ([1.0, 0.4, 0.4], False, 0),
        ([None, 1.0], True, 0),
        ([None, 1.0, 0.0], False, 0),
        ([None, 0.0], False, 0),
        ([None], False, 1),
        ([None, None], False, 1),
    ],
)
def test_more_than_half_of_the_judges_that_answered_must_say_right(
    votes: list[float | None], right: bool, unjudged: int
) -> None:
    assert majority({str(number): [vote] for number, vote in enumerate(votes)}) == ([right], unjudged)


def test_the_domain_part_keeps_what_each_judge_said_and_failed_at() -> None:
    opinions = {
        "big": opinion(1.0, 0.5, 0.4, None, not_json=1),
        "small": opinion(0.0, 0.9, None, None, failed=1, too_long=1),
        "dumb": opinion(None, None, None, None, failed=4),
    }
    correct, part = domain_part(opinions, "judge_domain", "the prompt")
    assert correct == [False, True, False, False]
    assert part == {
        "unjudged": 1,
        "prompt": {"file": "judge_domain", "hash": prompt_hash("the prompt")},
        "judges": {
            "big": {"right": 2 / 3, "answered": 3, "failures": {"not_json": 1}, "usage": USAGE},
            "small": {"right": 0.5, "answered": 2, "failures": {"failed": 1, "too_long": 1}, "usage": USAGE},
            "dumb": {"right": None, "answered": 0, "failures": {"failed": 4}, "usage": USAGE},
        },
    }


def test_judged_is_one_more_measure_and_counts_where_it_is_chosen() -> None:
    verdicts = {"contains": [True, True], "exact": [False, False], "judged": [True, False]}
    assert summary(verdicts, DomainMetric.auto)["metric"] == "contains"
    chosen = summary(verdicts, DomainMetric.judged)
    assert (chosen["metric"], chosen["accuracy"], chosen["correct"]) == ("judged", 0.5, [True, False])
    assert chosen["metrics"]["judged"] == {"accuracy": 0.5, "correct": [True, False]}


def test_an_open_question_scores_the_mean_of_its_verdicts_over_judges_and_turns() -> None:
    questions = [ONE, TWO, OpenQuestion(("Sing.",), (None,), None), OpenQuestion(("Dance.",), (None,), "things")]
    opinions = {
        # By question: one turn, two, one, one.
        "big": opinion(0.8, 1.0, 0.2, None, 0.0, failed=1),
        "small": opinion(0.4, None, 0.6, None, 1.0, failed=2),
    }
    part = open_part(questions, opinions, "judge_open", "p")
    assert part["scores"] == pytest.approx([0.6, 0.6, 0.0, 0.5])
    assert part["score"] == pytest.approx(1.7 / 4)
    assert (part["n"], part["unjudged"]) == (4, 1)
    assert part["by_category"] == {"things": pytest.approx(0.55), "talk": pytest.approx(0.6)}
    assert part["judges"]["big"] == {"score": 0.5, "answered": 4, "failures": {"failed": 1}, "usage": USAGE}
    assert part["judges"]["small"]["score"] == pytest.approx(2.0 / 3)
    assert part["prompt"] == {"file": "judge_open", "hash": prompt_hash("p")}


def test_what_judges_say_is_told_by_question_and_turn() -> None:
    opinions = {"big": opinion(0.8, 1.0, None), "small": opinion(0.4, None, 0.6)}
    none = {"score": None, "reason": ""}
    assert open_verdicts([ONE, TWO], opinions) == [
        [{"big": {"score": 0.8, "reason": "0.8!"}, "small": {"score": 0.4, "reason": "0.4!"}}],
        [
            {"big": {"score": 1.0, "reason": "1.0!"}, "small": none},
            {"big": none, "small": {"score": 0.6, "reason": "0.6!"}},
        ],
    ]


def test_scores_that_are_not_one_a_turn_are_a_defect() -> None:
    with pytest.raises(ValueError, match="3 turns"):
        open_part([ONE, TWO], {"big": opinion(0.5, 0.5)}, "f", "p")
    with pytest.raises(ValueError, match="0 turns"):
        open_part([], {"big": opinion()}, "f", "p")


def test_the_second_turn_is_read_with_the_models_own_first_answer() -> None:
    assert chat_of(TWO, []) == [{"role": "user", "content": "Say hi."}]
    assert chat_of(TWO, ["Hello!"]) == [
        {"role": "user", "content": "Say hi."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Again."},
    ]
    assert open_cases([ONE, TWO], [["A pear."], ["Hello!", "Hello again!"]]) == [
        Case("Name a fruit.", "Apple.", "A pear."),
        Case("Say hi.", "(none)", "Hello!"),
        Case("User: Say hi.\n\nAssistant: Hello!\n\nUser: Again.", "Hi.", "Hello again!"),
    ]


def test_the_judge_of_the_domain_reads_the_whole_chat_and_every_right_answer() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Symbol of gold?"}]
    rows = [Row(0, 1, chat, "It is Au.", ["Au", "It is Au."]), Row(1, 2, chat[1:], "Au", ["Au"])]
    assert domain_cases(rows, ["Ag", "Au"]) == [
        Case("System: Be brief.\n\nUser: Symbol of gold?", "It is Au.\nAu", "Ag"),
        Case("Symbol of gold?", "Au", "Au"),
    ]
    assert conversation(chat[1:]) == "Symbol of gold?"


def test_tokens_are_counted_and_priced_by_the_million() -> None:
    seen: list[dict[str, Any]] = []

    def model(requests: Any, **options: Any) -> list[Completion]:
        seen.append(options)
        return [Completion("x", input_tokens=100, output_tokens=10) for _ in requests]

    metered = Metered("big", model, RefineModelConfig(input_cost=2.0, output_cost=50.0))
    assert metered.identity == "big"
    requests = [Request([{"role": "user", "content": "?"}])]
    assert [one.text for one in metered(requests * 2, temperature=0.0)] == ["x", "x"]
    metered(requests, temperature=0.0)
    assert seen == [{"temperature": 0.0}] * 2
    assert metered.usage() == {"asks": 3, "input_tokens": 300, "output_tokens": 30, "cost": 0.0021}


def test_the_shipped_prompts_have_their_fields_and_ask_for_what_is_read() -> None:
    prompts = load_judge_prompts(EvalConfig())
    assert prompts["domain"] != prompts["open"]
    for text in prompts.values():
        assert all(f'"{name}"' in text for name in VERDICT_SCHEMA["required"])


BIG = RefineModelConfig(base_url="http://x", model="m")
KEYED = RefineModelConfig(base_url="http://x", model="m", api_key_env="NO_KEY")
NEAR = RefineModelConfig(path="p", context=400)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judges": ["bgi"]}, r"eval\.judges=bgi: nobody of that name; did you mean big\?"),
        ({"judges": ["embedding"]}, r"eval\.judges=embedding: nobody of that name"),
        ({"judges": ["big", "big"]}, r"eval\.judges=.*named twice"),
        ({"judges": ["keyed"]}, r"refine\.models\.keyed\.api_key_env: the environment variable NO_KEY is not set"),
        ({"judges": ["big"], "judge_prompt": "rewrite"}, r"eval\.judge_prompt=rewrite: .*lacks \{candidate\}"),
        ({"judges": ["big"], "open_prompt": "nope"}, r"eval\.open_prompt=nope: no such prompt file"),
        (
            {"judges": ["big", "near"], "judge_max_new_tokens": 400},
            r"eval\.judge_max_new_tokens=400: leaves no room .* refine\.models\.near\.context=400; lower it",
        ),
        ({"domain_metric": DomainMetric.judged}, r"eval\.domain_metric=judged: eval\.judges names nobody"),
        ({"open": "open.jsonl"}, r"eval\.open=open\.jsonl: eval\.judges names nobody"),
    ],
)
def test_judges_that_cannot_judge_are_refused(changes: dict[str, Any], words: str) -> None:
    config = Config(eval=EvalConfig(**changes))
    config.data.test = "test.jsonl"
    config.refine.models = {"big": BIG, "keyed": KEYED, "near": NEAR}
    with pytest.raises(ConfigError, match=words):
        check_judges(config)


def test_judges_with_nothing_to_judge_are_refused_and_others_pass() -> None:
    config = Config(eval=EvalConfig(judges=["self"]))
    with pytest.raises(ConfigError, match=r"eval\.judges=\['self'\]: there is nothing to judge"):
        check_judges(config)
    config.eval.open = "open.jsonl"
    check_judges(config)
    config.model.context = 257
    check_judges(config)
    check_judges(Config())
