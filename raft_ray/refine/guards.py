"""Guards: what makes a rewrite or a fused answer unusable, whatever its cosine to the gold answer.

Rules on text only; knows nothing about embeddings, judges or models. A guard is one function in `GUARDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from raft_ray.refine.key_facts import invented_facts, missing_facts, normalise
from raft_ray.templates import literals

TEMPLATE_FIELDS = ("prompt", "answer", "rewrite")
_LABEL = re.compile(
    r"^\W*(?:(?:reference|gold|short|correct|given|final|rewritten|fused|improved|draft) )?"
    r"(?:question|answer|sentence|rewrite|statement|draft)\s*\d*\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_LEAK_WORDS = 4


@dataclass(frozen=True)
class Draft:
    """A text that wants to replace a gold answer."""

    prompt: str
    answer: str
    """The gold answer."""
    text: str
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
    """Shows the prompt that asked for it: a label (`Reference answer:`), or a line of the template.

    Short pieces of a template are ordinary language, so only those of four words or more count; what stands in
    the row itself (question or gold answer) is never a leak.
    """
    own = normalise(f"{draft.prompt}\n{draft.answer}")
    if any(normalise(match.group()) not in own for match in _LABEL.finditer(draft.text)):
        return True
    text = f" {normalise(draft.text)} "
    pieces = (normalise(piece) for piece in literals(draft.template, TEMPLATE_FIELDS))
    return any(f" {piece} " in text and piece not in own for piece in pieces if len(piece.split()) >= _LEAK_WORDS)


def key_facts(draft: Draft) -> bool:
    """Lost a key fact of the gold answer."""
    return bool(missing_facts(draft.answer, draft.text))


def invented(draft: Draft) -> bool:
    """Has numbers or names that stand neither in the chat nor in the gold answer."""
    return bool(invented_facts(f"{draft.context}\n{draft.prompt}\n{draft.answer}", draft.text))


GUARDS: dict[str, Callable[[Draft], bool]] = {
    guard.__name__: guard for guard in (too_long, truncated, empty, leak, key_facts, invented)
}
"""In order; the first that fires gives the reason."""


def refusal(draft: Draft, *, off: Collection[str] = ()) -> str | None:
    """Why `draft` cannot be used: the name of the first guard that fires, those in `off` left out; none if it can."""
    return next((name for name, fires in GUARDS.items() if name not in off and fires(draft)), None)
