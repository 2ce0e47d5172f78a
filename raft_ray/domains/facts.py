"""Facts that are asked about: the same fact in one wording for training and in another one for testing.

Knows nothing about where the facts come from.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "test"]
Wordings = Mapping[str, tuple[str, str, str]]
"""By kind of fact: two training wordings, which take turns, and the test wording."""


@dataclass(frozen=True)
class Fact:
    kind: str
    subject: str
    """What the question is about, as it stands in a sentence."""
    answer: str
    others: tuple[str, ...] = ()
    """Further answers that count as right."""
    words: dict[str, str] = field(default_factory=dict)
    """What the wording takes besides the subject."""


def ask(facts: Iterable[Fact], wordings: Wordings, split: Split, *, about: str) -> list[dict[str, Any]]:
    """A row a fact, in order: `prompt`, `answer`, `answers`, `kind`, and the subject under the name `about`.

    The wordings name the subject `{about}` too. Row i of both splits is about the same fact.
    """
    asked: Counter[str] = Counter()
    rows = []
    for fact in facts:
        *train, test = wordings[fact.kind]
        wording = test if split == "test" else train[asked[fact.kind] % len(train)]
        asked[fact.kind] += 1
        gold = fact.answer[:1].upper() + fact.answer[1:]
        rows.append(
            {
                "prompt": wording.format(**{about: fact.subject}, **fact.words),
                "answer": gold,
                "answers": variants(gold, *fact.others),
                "kind": fact.kind,
                about: fact.subject,
            }
        )
    return rows


def variants(*answers: str) -> list[str]:
    """The answers without repetition, each one with accents followed by its plain spelling."""
    folded = [unicodedata.normalize("NFKD", text.replace("ø", "o").replace("Ø", "O")) for text in answers]
    plain = [text.replace("ł", "l").encode("ascii", "ignore").decode() for text in folded]
    return list(dict.fromkeys(text for pair in zip(answers, plain, strict=True) for text in pair))
