"""Guards: what makes a rewrite or a fused answer unusable, whatever its cosine to the gold answer.

Rules on text only; knows nothing about embeddings, judges or models. A guard is one function in `GUARDS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

from raft_ray.refine.key_facts import TERSE_WORDS, invented_facts, missing_facts, normalise, tokens
from raft_ray.templates import literals

TEMPLATE_FIELDS = ("prompt", "answer", "rewrite")
_LABEL = re.compile(
    r"^\W*(?:(?:reference|gold|short|correct|given|final|rewritten|fused|improved|draft) )?"
    r"(?:question|answer|sentence|rewrite|statement|draft)\s*\d*\s*:"
    r"|^\W*(?:the )?(?:correct |short )?answer to (?:this|the|that|your) (?:question|puzzle|riddle)",
    re.IGNORECASE | re.MULTILINE,
)
_LEAK_AT_START = 3
_LEAK_ANYWHERE = 4
_CIRCLES = 3


@dataclass(frozen=True)
class Draft:
    """A text that wants to replace a gold answer."""

    prompt: str
    answer: str
    """The gold answer."""
    text: str
    right: tuple[str, ...] = ()
    """Short answers of which a text must state one, where the row names them."""
    context: str = ""
    """What was said in the chat before the question."""
    truncated: bool = False
    """The token limit ended it."""
    too_long: bool = False
    """Nothing was generated: the prompt left no room in the model's context."""
    template: str = ""
    """The prompt file that asked for it, fields unfilled."""


def too_long(draft: Draft) -> bool:
    """The prompt did not fit the model's context."""
    return draft.too_long


def truncated(draft: Draft) -> bool:
    """Cut off by the token limit: it may end in the middle of a fact."""
    return draft.truncated


def empty(draft: Draft) -> bool:
    """Says nothing: no letter or digit."""
    return not any(map(str.isalnum, draft.text))


def leak(draft: Draft) -> bool:
    """Shows the prompt that asked for it: a label (`Reference answer:`), or words of the template.

    Short pieces of a template are ordinary language: one counts from three words on where the text begins with it
    (`The answer is`), from four on anywhere. What stands in the row itself (question or gold answer) is no leak.
    """
    own = _spaced(f"{draft.prompt}\n{draft.answer}")
    if any(_spaced(match.group()) not in own for match in _LABEL.finditer(draft.text)):
        return True
    text = _spaced(draft.text)
    for piece in map(_spaced, literals(draft.template, TEMPLATE_FIELDS)):
        words = len(piece.split())
        shown = text.startswith(piece) if words < _LEAK_ANYWHERE else piece in text
        if words >= _LEAK_AT_START and shown and piece not in own:
            return True
    return False


def echo(draft: Draft) -> bool:
    """Asks the question again, word for word."""
    return draft.prompt.rstrip().endswith("?") and _spaced(draft.prompt) in _spaced(draft.text)


def unchanged(draft: Draft) -> bool:
    """A terse gold answer said again, without a sentence around it."""
    gold = normalise(draft.answer)
    return not draft.right and len(gold.split()) <= TERSE_WORDS and normalise(draft.text) == gold


def repetition(draft: Draft) -> bool:
    """Goes round in circles: one pair of words makes up a third of it or more, three times at least."""
    words = normalise(draft.text).split()
    pairs = Counter(pairwise(words))
    return any(count >= _CIRCLES and 2 * count * 3 >= len(words) for count in pairs.values())


def key_facts(draft: Draft) -> bool:
    """Lost a key fact of the gold answer."""
    return bool(missing_facts(draft.answer, draft.text, draft.right))


def invented(draft: Draft) -> bool:
    """Has numbers or names that stand neither in the chat nor in the gold answer."""
    return bool(invented_facts(f"{draft.context}\n{draft.prompt}\n{draft.answer}", draft.text))


GUARDS: dict[str, Callable[[Draft], bool]] = {
    guard.__name__: guard
    for guard in (too_long, truncated, empty, leak, echo, unchanged, repetition, key_facts, invented)
}
"""In order; the first that fires gives the reason."""


def refusal(draft: Draft, *, off: Collection[str] = ()) -> str | None:
    """Why `draft` cannot be used: the name of the first guard that fires, those in `off` left out; none if it can."""
    return next((name for name, fires in GUARDS.items() if name not in off and fires(draft)), None)


def _spaced(text: str) -> str:
    """The words in lower case between single spaces, also at both ends, so that `in` compares whole words."""
    return f" {' '.join(token.casefold() for token in tokens(text))} "
