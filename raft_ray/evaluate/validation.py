"""The questions that are asked while a method trains (`eval.every`), and what the answers to them say.

```
 rows held out, or eval.validation ──> domain ──┐
 eval.general ───────────────────────> general ─┼─> ValidationSet ─parts─> rollout actors ─answers─> measure ──> line
 IFEval (a slice) ───────────────────> ifeval ──┘                                    drift (the learner's) ──────┘
```

Scores are those of the evaluation at the end (`domain`, `ifeval`, `answers`, `drift`), of greedy answers. Knows nothing
about engines or who asks; how lines compare is `raft_ray.evaluate.selection`'s.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from raft_ray.config import Config, DomainMetric
from raft_ray.data import Row, RowTable, check_rows, read_rows
from raft_ray.data.general import general_prompts
from raft_ray.errors import ConfigError, DataError, RaftError
from raft_ray.evaluate import domain, ifeval
from raft_ray.evaluate.answers import Answer, length
from raft_ray.evaluate.subset import subset

if TYPE_CHECKING:
    from raft_ray.evaluate.drift import Drift
    from raft_ray.models.chat import Chat

CHUNK_SIZE = 32
"""Questions per call of an engine. Which of them share a call decides how floating-point numbers are rounded, so it
does not depend on how many engines there are."""


@dataclass(frozen=True)
class Question:
    """Something to answer in writing."""

    kind: str
    """`domain`, `general` or `ifeval`."""
    prompt: list[int]
    """Token ids."""
    limit: int
    """Tokens of the answer at most."""
    answers: list[str] = field(default_factory=list)
    """That count as right, of a domain question."""
    ifeval: ifeval.IfevalPrompt | None = None

    def correct(self, text: str) -> dict[str, bool]:
        """Verdicts on an answer by measure; none on a general one."""
        if self.kind == "domain":
            return {"contains": domain.contains(text, self.answers), "exact": domain.exact(text, self.answers)}
        return {"strict": ifeval.score([self.ifeval], [text])["correct"][0]} if self.ifeval else {}


@dataclass(frozen=True)
class ValidationSet:
    """All questions, those with the longest answers first."""

    questions: list[Question]
    metric: DomainMetric
    context: int

    def parts(self) -> list[list[int]]:
        """Indices of the questions that can be asked, in calls of an engine."""
        asked = [index for index, question in enumerate(self.questions) if len(question.prompt) < self.context]
        return [asked[start : start + CHUNK_SIZE] for start in range(0, len(asked), CHUNK_SIZE)]

    def digest(self) -> str:
        """Of what decides the answers and their scores."""
        said = [[q.kind, q.prompt, q.limit, q.answers, q.ifeval and q.ifeval.key] for q in self.questions]
        return hashlib.sha256(json.dumps([said, self.metric, self.context]).encode()).hexdigest()[:16]

    def general_pairs(self, answers: Mapping[int, Answer]) -> list[tuple[list[int], list[int]]]:
        """Prompt ids and response ids of the general questions that were answered."""
        pairs = ((one.prompt, answers[index].token_ids) for index, one in self._of("general") if index in answers)
        return [(prompt, response) for prompt, response in pairs if response]

    def measure(self, answers: Mapping[int, Answer]) -> dict[str, Any]:
        """What answers by index of question tell: keys of a line of `evaluations.jsonl`."""
        given = {
            kind: [answers.get(index) or Answer(correct=one.correct("")) for index, one in self._of(kind)]
            for kind in ("domain", "ifeval", "general")
        }
        verdicts = {name: [answer.correct[name] for answer in given["domain"]] for name in ("contains", "exact")}
        metric = DomainMetric.contains if self.metric is DomainMetric.auto else self.metric
        scored = domain.summary(verdicts, metric)
        lengths = length(given["general"])
        return {
            "accuracy": scored["accuracy"],
            "metric": scored["metric"],
            "ifeval": fmean(one.correct["strict"] for one in given["ifeval"]) if given["ifeval"] else None,
            "words": lengths["words_mean"],
            "truncated": lengths["truncated"],
            "n": {kind: len(found) for kind, found in given.items()},
            "too_long": len(self.questions) - len(answers),
        }

    def _of(self, kind: str) -> list[tuple[int, Question]]:
        return [(index, one) for index, one in enumerate(self.questions) if one.kind == kind]


def evaluation_line(
    step: int, figures: Mapping[str, Any], drift: Drift, base: Mapping[str, Any] | None, seconds: float
) -> dict[str, Any]:
    """A line of `evaluations.jsonl`. `figures`: of `ValidationSet.measure`. `base`: the line of step 0; none for that
    itself."""
    found = {"step": step, **figures, "drift": drift.kl, "drift_first": drift.kl_first, "top1": drift.top1_agreement}
    base = base or found
    return found | {
        "of_base": {
            key: found[key] / base[key] if found[key] is not None and base[key] else None
            for key in ("accuracy", "ifeval", "words")
        },
        "seconds": round(seconds, 3),
    }


def make_validation_set(config: Config, chat: Chat, context: int, rows: Sequence[Row]) -> ValidationSet:
    """The questions as token ids. Raises `ConfigError` or `DataError`."""
    asked, seed = config.eval, config.run.seed

    def prompt(text: str) -> list[int]:
        return chat.prompt([{"role": "user", "content": text}])

    questions = [
        Question("ifeval", prompt(one.prompt), asked.ifeval_max_new_tokens, ifeval=one) for one in _instructions(config)
    ]
    questions += [
        Question("general", prompt(text), asked.general_max_new_tokens)
        for text in subset(general_prompts(asked.general), asked.general_rows, seed)
    ]
    questions += [
        Question("domain", chat.prompt(row.messages), asked.domain_max_new_tokens, answers=row.answers) for row in rows
    ]
    questions.sort(key=lambda question: -question.limit)
    if all(len(question.prompt) >= context for question in questions if question.kind == "general"):
        raise DataError(f"eval.general: no prompt leaves room for an answer in a context of {context}; name others")
    return ValidationSet(questions, asked.domain_metric, context)


def validation_rows(
    config: Config, train: RowTable, count_tokens: Callable[[list[dict[str, str]], str], tuple[int, int]]
) -> tuple[RowTable, list[Row]]:
    """The rows that are trained on, and the validation questions: those of `eval.validation`, or rows held out. The
    rows held out are drawn with `run.seed`, and the others are numbered anew. Raises `ConfigError` or `DataError` where
    there are too few, or what else the evaluations need is missing."""
    asked, seed = config.eval, config.run.seed
    _instructions(config)
    general_prompts(asked.general)
    if asked.validation is None:
        if 2 * asked.validation_rows > len(train):
            raise ConfigError(
                f"eval.validation_rows={asked.validation_rows}: would hold out more than half of the {len(train)} "
                "training rows; lower it, or name other rows in eval.validation"
            )
        chosen = random.Random(f"validation {seed}").sample(range(len(train)), asked.validation_rows)
        return train.held_out(set(chosen))
    where = f"eval.validation={asked.validation}"
    try:
        rows, bad = read_rows(asked.validation, config.data, split="test", count_tokens=count_tokens)
    except DataError as error:
        raise DataError(str(error).replace(f"data.test={asked.validation}", where, 1)) from error
    check_rows(rows, bad, config.data, where)
    return train, subset(rows, asked.validation_rows, seed)


def _instructions(config: Config) -> list[ifeval.IfevalPrompt]:
    """The slice of IFEval's prompts."""
    if not (count := config.eval.validation_ifeval_rows):
        return []
    try:
        ifeval.check()
        return ifeval.load_prompts(count, config.run.seed)
    except RaftError as error:
        raise type(error)(str(error).replace("eval.ifeval_rows", "eval.validation_ifeval_rows")) from error
