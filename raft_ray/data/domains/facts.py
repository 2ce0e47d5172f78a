"""Facts that are asked about: the same fact in one wording for training and in two others for testing.

Knows nothing about where the facts come from.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

Split = Literal["train", "test"]
QUESTIONS: dict[Split, int] = {"train": 1, "test": 2}
"""How often a split asks for a fact."""


class Wording(NamedTuple):
    """How a kind of fact is asked about and answered; the subject and the answer go where the fields are."""

    train: list[str]
    """Questions of training, which take turns."""
    test: list[str]
    """Questions of testing, both asked for each fact."""
    answer: str
    """The answer as a person would write it; the fact goes to `{answer}`."""


@dataclass(frozen=True)
class Fact:
    kind: str
    subject: str
    """What the question is about, as it stands in a sentence."""
    answer: str
    others: Sequence[str] = ()
    """Further answers that count as right."""
    words: dict[str, str] = field(default_factory=dict)
    """What the wording takes besides the subject."""


def table(domain: str, name: str) -> Any:
    """A table of a domain's YAML file, which is read when somebody asks for the domain."""
    return _tables(domain)[name]


@cache
def _tables(domain: str) -> dict[str, Any]:
    """All that the file beside this one holds; `wordings` are `Wording`s by kind of fact."""
    found = yaml.safe_load(Path(__file__).with_name(f"{domain}.yaml").read_text(encoding="utf-8"))
    return {**found, "wordings": {kind: Wording(**wording) for kind, wording in found["wordings"].items()}}


def ask(facts: Iterable[Fact], wordings: Mapping[str, Wording], split: Split, *, about: str) -> list[dict[str, Any]]:
    """`QUESTIONS[split]` rows a fact, in order: `prompt`, `answer`, `answers`, `kind`, and the subject as `about`.
    `answer` is a sentence or two, `answers` the short texts of which one must be in a right answer. The wordings name
    the subject `{about}` too. Training asks for fact i in row i, testing in rows 2i and 2i+1."""
    asked: Counter[str] = Counter()
    rows = []
    for fact in facts:
        wording = wordings[fact.kind]
        questions = wording.test if split == "test" else (wording.train[asked[fact.kind] % len(wording.train)],)
        asked[fact.kind] += 1
        fields = {about: fact.subject, **fact.words}
        rows += [
            {
                "prompt": question.format(**fields),
                "answer": _capital(wording.answer.format(answer=fact.answer, **fields)),
                "answers": variants(fact.answer, *fact.others),
                "kind": fact.kind,
                about: fact.subject,
            }
            for question in questions
        ]
    return rows


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def variants(*answers: str) -> list[str]:
    """The answers without repetition, each one with accents followed by its plain spelling."""
    folded = [unicodedata.normalize("NFKD", text.replace("ø", "o").replace("Ø", "O")) for text in answers]
    plain = [text.replace("ł", "l").encode("ascii", "ignore").decode() for text in folded]
    return list(dict.fromkeys(text for pair in zip(answers, plain, strict=True) for text in pair))
