"""In which language and script a text is, as far as that can be known.

Detectors are unreliable on a few words, and on names most of all: what is asked here is only whether a text can be in
a language that others are in, and a text of a few words always can. Its script is told from any text.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from raft_ray.data.normalise import words

_WORDS = 5  # of fewer, no language is told
_SURE = 0.5
_PLAUSIBLE = 0.1


def in_another_language(text: str, *known: str, least: float) -> bool:
    """Whether `text` makes every language that one of `known` may be in less likely than `least`.

    False where either cannot be told: `text` or all of `known` are a few words, or no language of `known` is likely.
    """
    if len(words(text)) < _WORDS:
        return False
    spoken: set[str] = set()
    sure = False
    for sample in (*known, "\n".join(known)):
        if len(words(sample)) >= _WORDS:
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
