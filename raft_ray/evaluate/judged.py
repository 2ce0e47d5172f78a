"""What language models as judges say of answers: which of the domain's are right, how good those to open questions are.

A judge's score of one answer is in [0, 1], or none where it failed or answered nonsense; nobody guesses in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from raft_ray.config import Config, DomainMetric, EvalConfig, RefineModelConfig
from raft_ray.data import Row
from raft_ray.errors import ConfigError
from raft_ray.evaluate.open_questions import OpenQuestion
from raft_ray.models.templates import load_prompt, prompt_hash
from raft_ray.refine.generation import Completion, Message, Request
from raft_ray.refine.judges import JUDGE_FIELDS, Case
from raft_ray.refine.roles import SELF, check_model_judges, is_local, model_config

RIGHT = 0.5
"""From this score on a judge counts an answer of the domain as right."""
NO_REFERENCE = "(none)"
"""Stands where a judge reads an open question's reference and there is none."""

Answered = dict[str, list[Case]]
"""A model's answers as judges read them: under `domain` one per question, under `open` one per turn."""
JudgePrompts = dict[str, str]
"""Texts of the prompt files of `domain` and `open`, fields unfilled."""


@dataclass(frozen=True)
class JudgeResult:
    """What one judge says of one model's answers of a kind."""

    scores: list[float | None]
    reasons: list[str]
    """Of each answer, why; empty where the judge gave none."""
    failures: dict[str, int]
    """How many answers got no score, by reason (`raft_ray.refine.judges.LlmJudge`)."""
    usage: dict[str, float]
    """Of what was asked now rather than known: `asks`, `input_tokens`, `output_tokens`, and their `cost` at an
    endpoint's price."""


class Metered:
    """A `Generate` that counts what it is asked, its tokens and, at the price of `model`, what they cost."""

    def __init__(self, identity: str, generate: Callable[..., list[Completion]], model: RefineModelConfig) -> None:
        self.identity = identity
        self._generate, self._model = generate, model
        self._asks = self._input = self._output = 0

    def __call__(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        completions = self._generate(requests, **options)
        self._asks += len(requests)
        self._input += sum(one.input_tokens for one in completions)
        self._output += sum(one.output_tokens for one in completions)
        return completions

    def usage(self) -> dict[str, float]:
        """`{"asks", "input_tokens", "output_tokens", "cost"}` since the start."""
        cost = round((self._input * self._model.input_cost + self._output * self._model.output_cost) / 1e6, 6)
        return {"asks": self._asks, "input_tokens": self._input, "output_tokens": self._output, "cost": cost}


def check_judges(config: Config) -> None:
    """Refuse judges that cannot judge, and measures that lack them, before anything starts. Raises `ConfigError`."""
    asked, nobody = config.eval, "eval.judges names nobody; name a model that"
    if not asked.judges:
        if asked.domain_metric is DomainMetric.judged:
            raise ConfigError(f"eval.domain_metric=judged: {nobody} judges there")
        if asked.open is not None:
            raise ConfigError(f"eval.open={asked.open}: {nobody} scores it there")
        return
    check_model_judges("eval.judges", asked.judges, config.refine)
    if config.data.test is None and asked.open is None:
        raise ConfigError(
            f"eval.judges={asked.judges}: there is nothing to judge; set data.test or eval.open, or leave the key out"
        )
    for name in asked.judges:
        context = model_config(config, name).context if is_local(config.refine, name) else None
        if context is not None and asked.judge_max_new_tokens >= context:
            key = "model.context" if name == SELF else f"refine.models.{name}.context"
            raise ConfigError(
                f"eval.judge_max_new_tokens={asked.judge_max_new_tokens}: leaves no room for an answer in "
                f"{key}={context}; lower it"
            )
    load_judge_prompts(asked)


def load_judge_prompts(asked: EvalConfig) -> JudgePrompts:
    """The prompt files of the judges. Raises `ConfigError` naming the key of one that is amiss."""
    return {
        "domain": load_prompt(asked.judge_prompt, JUDGE_FIELDS, "eval.judge_prompt"),
        "open": load_prompt(asked.open_prompt, JUDGE_FIELDS, "eval.open_prompt"),
    }


def domain_cases(rows: Sequence[Row], answers: Sequence[str]) -> list[Case]:
    """What judges read of the answers to the domain's questions: every answer that counts as right is named."""
    return [
        Case(conversation(row.messages), "\n".join(dict.fromkeys([row.answer, *row.answers])), answer)
        for row, answer in zip(rows, answers, strict=True)
    ]


def open_cases(questions: Sequence[OpenQuestion], answers: Sequence[Sequence[str]]) -> list[Case]:
    """What judges read of the answers to open questions (one per turn): a case per turn, with the chat before it."""
    return [
        Case(conversation(chat_of(question, given[:turn])), question.references[turn] or NO_REFERENCE, given[turn])
        for question, given in zip(questions, answers, strict=True)
        for turn in range(len(question.turns))
    ]


def chat_of(question: OpenQuestion, answers: Sequence[str]) -> list[Message]:
    """The chat up to the turn that comes after `answers`."""
    chat: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        chat += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": question.turns[len(answers)]}]


def conversation(messages: Sequence[Message]) -> str:
    """A chat as text: one message as it is, several with who says what."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def majority(scores: Mapping[str, Sequence[float | None]]) -> tuple[list[bool], int]:
    """Whether more than half of the judges that answered count each answer as right, and of how many answers none did.
    `scores`: by judge, of the same answers. Half of the votes is not more than half; an answer that nobody judged is
    wrong."""
    votes = [[score >= RIGHT for score in given if score is not None] for given in zip(*scores.values(), strict=True)]
    return [2 * sum(one) > len(one) for one in votes], sum(not one for one in votes)


def domain_part(
    opinions: Mapping[str, JudgeResult], prompt_file: str, prompt: str
) -> tuple[list[bool], dict[str, Any]]:
    """The verdict on each of the domain's questions, and the `judged` part of a `domain` block (`docs/design.md`).
    There a judge's `right` is the share of votes for right among the answers that it judged, none if it judged none."""
    correct, unjudged = majority({name: opinion.scores for name, opinion in opinions.items()})
    judges = _judges(opinions, "right", lambda score: score >= RIGHT)
    return correct, {"unjudged": unjudged, "prompt": _recorded(prompt_file, prompt), "judges": judges}


def open_part(
    questions: Sequence[OpenQuestion], opinions: Mapping[str, JudgeResult], prompt_file: str, prompt: str
) -> dict[str, Any]:
    """The `open` part of a model's block (`docs/design.md`). A question's score is the mean over all judges' scores of
    all its turns; a question of which no turn was judged scores 0 and is `unjudged`. `opinions`: by judge, with a score
    per turn, question by question. Raises `ValueError` where the scores are not one per turn, or nothing was asked."""
    turns = [len(question.turns) for question in questions]
    if not turns or any(len(opinion.scores) != sum(turns) for opinion in opinions.values()):
        raise ValueError(f"open questions with {sum(turns)} turns and other numbers of scores")
    columns = [iter(opinion.scores) for opinion in opinions.values()]
    given = [[score for column in columns for score in islice(column, count) if score is not None] for count in turns]
    scores = [fmean(one) if one else 0.0 for one in given]
    categories: dict[str, list[float]] = {}
    for question, score in zip(questions, scores, strict=True):
        if question.category is not None:
            categories.setdefault(question.category, []).append(score)
    return {
        "score": fmean(scores),
        "n": len(scores),
        "scores": scores,
        "by_category": {name: fmean(some) for name, some in categories.items()},
        "unjudged": sum(not one for one in given),
        "prompt": _recorded(prompt_file, prompt),
        "judges": _judges(opinions, "score", float),
    }


def open_verdicts(
    questions: Sequence[OpenQuestion], opinions: Mapping[str, JudgeResult]
) -> list[list[dict[str, dict[str, Any]]]]:
    """What all judges say, by question and turn: `{judge: {"score": in [0, 1] or none, "reason"}}`."""
    said = iter(
        {name: {"score": score, "reason": reason} for name, (score, reason) in zip(opinions, given, strict=True)}
        for given in zip(*(zip(one.scores, one.reasons, strict=True) for one in opinions.values()), strict=True)
    )
    return [list(islice(said, len(question.turns))) for question in questions]


def _judges(
    opinions: Mapping[str, JudgeResult], key: str, value: Callable[[float], float]
) -> dict[str, dict[str, Any]]:
    """Of each judge the mean `value` of its scores, under `key`, and how many there are; none of none."""
    judges = {}
    for name, opinion in opinions.items():
        values = [value(score) for score in opinion.scores if score is not None]
        trail = {"answered": len(values), "failures": opinion.failures, "usage": opinion.usage}
        judges[name] = {key: fmean(values) if values else None, **trail}
    return judges


def _recorded(file: str, text: str) -> dict[str, str]:
    return {"file": file, "hash": prompt_hash(text)}
