"""Guards: what makes a rewrite or a fused answer unusable, whatever its cosine to the gold answer.

Rules on text only; knows nothing about embeddings, judges or models. A guard is one function in `GUARDS`: of the
draft, and of the limits that the config sets.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

from raft_ray.config import RefineGuardsConfig
from raft_ray.data.normalise import words
from raft_ray.models.templates import fill, literals
from raft_ray.models.thinking import without_thinking
from raft_ray.refine.key_facts import TERSE_WORDS, canonical, invented_facts, missing_facts

TEMPLATE_FIELDS = ("prompt", "answer", "rewrite")
_LABEL = re.compile(
    r"^[^\w\n]*(?:(?:reference|gold|short|correct|given|final|rewritten|fused|improved|draft) )?"
    r"(?:question|answer|sentence|rewrite|statement|draft)\s*\d*\s*:"
    r"|^[^\w\n]*(?:the )?(?:correct |short )?answer to (?:this|the|that|your) (?:question|puzzle|riddle)",
    re.IGNORECASE | re.MULTILINE,
)
# `Sure! Here is the rewritten answer:`
_PREAMBLE = re.compile(
    r"\A\W*(?:(?:sure|certainly|of course|ok(?:ay)?)\b\W*)?(?:here(?:'s|’s| is| are)|below is)\b[^\n:]{0,80}"
    r"\b(?:answer|sentence|version|rewrite|rewriting|response|paraphrase|statement)\b[^\n:]{0,40}:",
    re.IGNORECASE,
)
_LEAK_AT_START = 3
_LEAK_ANYWHERE = 4
_CIRCLES = 3
_PASSAGE = 4
_STUTTER = re.compile(r"([^\W\d_]{1,4}?)\1{11,}")
_LENGTH_WORDS = 20
# Detectors of languages are unreliable on a few words, and on names most of all: of fewer, no language is told.
_LANGUAGE_WORDS = 5
_SURE = 0.5
_PLAUSIBLE = 0.1


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


def too_long(draft: Draft, _: RefineGuardsConfig) -> bool:
    """The prompt did not fit the model's context."""
    return draft.too_long


def truncated(draft: Draft, _: RefineGuardsConfig) -> bool:
    """Cut off by the token limit: it may end in the middle of a fact."""
    return draft.truncated


def empty(draft: Draft, _: RefineGuardsConfig) -> bool:
    """Says nothing: no letter or digit."""
    return not any(map(str.isalnum, draft.text))


def leak(draft: Draft, limits: RefineGuardsConfig) -> bool:
    """Shows the prompt that asked for it: a label (`Reference answer:`), an announcement (`Here is the rewritten
    answer:`), one of the phrases that `refine.guards.leaks` names, or words of the template.

    Short pieces of a template are ordinary language: one counts from three words on where the text begins with it
    (`Say it again`), from four on anywhere. What stands in the row itself (question or gold answer) is no leak, nor is
    the sentence in which the template says the gold answer (`The right answer is: {answer}.`): it offers that sentence.
    """
    own = _spaced(f"{draft.prompt}\n{draft.answer}")
    for pattern in (_LABEL, _PREAMBLE):
        if any(_spaced(match.group()) not in own for match in pattern.finditer(draft.text)):
            return True
    text = _spaced(draft.text)
    if any(phrase in text and phrase not in own for phrase in map(_spaced, limits.leaks)):
        return True
    saying = (line for line in literals(draft.template, ("prompt", "rewrite")) if "{answer}" in line)
    own += "".join(said for line in saying if (said := _spaced(fill(line, answer=draft.answer))) in text)
    for piece in map(_spaced, literals(draft.template, TEMPLATE_FIELDS)):
        words = len(piece.split())
        shown = text.startswith(piece) if words < _LEAK_ANYWHERE else piece in text
        if words >= _LEAK_AT_START and shown and piece not in own:
            return True
    return False


def echo(draft: Draft, _: RefineGuardsConfig) -> bool:
    """Asks the question again, word for word, which the gold answer does not."""
    if not draft.prompt.rstrip().endswith("?"):
        return False
    question = _spaced(draft.prompt)
    return question in _spaced(draft.text) and question not in _spaced(draft.answer)


def unchanged(draft: Draft, _: RefineGuardsConfig) -> bool:
    """A terse gold answer said again, without a sentence around it."""
    gold = canonical(draft.answer)
    return not draft.right and len(gold.split()) <= TERSE_WORDS and canonical(draft.text) == gold


def repetition(draft: Draft, limits: RefineGuardsConfig) -> bool:
    """Goes round in circles: says passages again, much more than the gold answer does; makes a third of itself or more
    of one pair of words, three times at least; or stutters (`hahaha`).
    """
    said = canonical(draft.text).split()
    pairs = Counter(pairwise(said))
    if any(count >= _CIRCLES and 2 * count * 3 >= len(said) for count in pairs.values()):
        return True
    if _repeated(said) > limits.repetition + _repeated(canonical(draft.answer).split()):
        return True
    return any(match.group() not in draft.answer for match in _STUTTER.finditer(draft.text))


def language(draft: Draft, limits: RefineGuardsConfig) -> bool:
    """Is in a language, or in letters of a script, that neither question nor gold answer is in."""
    known = (draft.prompt, draft.answer)
    return foreign_letters(draft.text, draft.context, *known) > limits.script or in_another_language(
        draft.text, *known, least=limits.language
    )


def length(draft: Draft, limits: RefineGuardsConfig) -> bool:
    """Is much shorter than a gold answer of some length, or much longer than any gold answer."""
    text, gold = len(words(draft.text)), len(words(draft.answer))
    too_short = gold >= _LENGTH_WORDS and text < limits.shortest * gold
    return too_short or text > limits.longest * max(gold, _LENGTH_WORDS)


def key_facts(draft: Draft, _: RefineGuardsConfig) -> bool:
    """Lost a key fact of the gold answer."""
    return bool(missing_facts(draft.answer, draft.text, draft.right))


def invented(draft: Draft, _: RefineGuardsConfig) -> bool:
    """Has numbers or names that stand neither in the chat nor in the gold answer."""
    return bool(invented_facts(f"{draft.context}\n{draft.prompt}\n{draft.answer}", draft.text))


_IN_ORDER = (too_long, truncated, empty, leak, echo, unchanged, repetition, language, length, key_facts, invented)
GUARDS: dict[str, Callable[[Draft, RefineGuardsConfig], bool]] = {guard.__name__: guard for guard in _IN_ORDER}
"""The first that fires gives the reason."""


def refusal(draft: Draft, *, off: Collection[str] = (), limits: RefineGuardsConfig | None = None) -> str | None:
    """Why `draft` cannot be used: the name of the first guard that fires, those in `off` left out; none if it can.
    Thinking in the text is not looked at: what is nothing else is `empty`. `limits` is `refine.guards`; none takes its
    defaults."""
    draft = replace(draft, text=without_thinking(draft.text))
    limits = limits or RefineGuardsConfig()
    return next((name for name, fires in GUARDS.items() if name not in off and fires(draft, limits)), None)


def _repeated(words: list[str]) -> float:
    """The share of `words` that stand in a passage (four words) which was there before."""
    seen: set[tuple[str, ...]] = set()
    again = [False] * len(words)
    for i in range(len(words) - _PASSAGE + 1):
        passage = tuple(words[i : i + _PASSAGE])
        if passage in seen:
            again[i : i + _PASSAGE] = [True] * _PASSAGE
        seen.add(passage)
    return sum(again) / max(1, len(words))


def _spaced(text: str) -> str:
    """The words in lower case between single spaces, also at both ends, so that `in` compares whole words."""
    return f" {' '.join(word.casefold() for word in words(text))} "


def in_another_language(text: str, *known: str, least: float) -> bool:
    """Whether `text` makes every language that one of `known` may be in less likely than `least`. False where either
    cannot be told: `text` or all of `known` are a few words, or no language of `known` is likely."""
    if len(words(text)) < _LANGUAGE_WORDS:
        return False
    spoken: set[str] = set()
    sure = False
    for sample in (*known, "\n".join(known)):
        if len(words(sample)) >= _LANGUAGE_WORDS:
            likely = _likelihoods(sample)
            sure = sure or max(likely.values()) >= _SURE
            spoken |= {language for language, share in likely.items() if share >= _PLAUSIBLE}
    return sure and sum(share for language, share in _likelihoods(text).items() if language in spoken) < least


def foreign_letters(text: str, *known: str) -> float:
    """The share of the letters of `text` whose script none of `known` has a letter of; 0 without letters."""
    scripts = _scripts(text)
    own = set().union(*(_scripts(sample) for sample in known))
    return sum(count for script, count in scripts.items() if script not in own) / max(1, scripts.total())


def _scripts(text: str) -> Counter[str]:
    """Letters by script, as the first word of a letter's Unicode name: `LATIN`, `CYRILLIC`, `CJK`, `HIRAGANA`."""
    # Compatibility forms folded: mathematical italics and full-width letters are Latin.
    letters = filter(str.isalpha, unicodedata.normalize("NFKC", text))
    return Counter(unicodedata.name(letter, "UNKNOWN").split(maxsplit=1)[0] for letter in letters)


def _likelihoods(text: str) -> dict[str, float]:
    """Languages (ISO 639) and how likely `text` is in them, together 1."""
    return {language: float(share) for language, share in _identifier().rank(text)}


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
