"""Key facts: the parts of a gold answer that a rewrite must not lose, and whether a text still has them.

Facts are numbers, names, code and quoted strings; of a terse answer, which is all fact, its whole content.
A cosine does not see them: `1868` and `1886` embed alike. Rules only; knows nothing about models or embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from raft_ray.data.normalise import (
    ARTICLES,
    NUMBER_WORDS,
    Passage,
    has_symbol,
    is_short,
    keys,
    numbers,
    tokens,
    unjoined,
)

TERSE_WORDS = 6
"""An answer of at most so many words, without numbers among more than three, is a fact as a whole."""

_CODE = re.compile(r"```(?:\w*\n)?(.+?)```|`([^`\n]+)`", re.DOTALL)
_QUOTED = re.compile(r'"([^"\n]+)"|“([^“”\n]+)”|«([^«»\n]+)»|(?<!\w)\'([^\'\n]+)\'(?!\w)')
_GAP = "\0"  # stands where a fact was taken out: what is on its two sides does not belong together
# What `raft_ray.data.normalise` reads as one number stays together: `1 000`, `5 million`, `6 × 10^23`, `minus five`.
_DIGIT = "[\\d¼-¾⅐-⅞⁰¹²³⁴-⁹]"
_AFTER_WORD = "|".join(rf"(?<=\b{word})" for word in NUMBER_WORDS)
_JOIN = (
    rf"(?:(?i:(?:{_AFTER_WORD}) (?=(?:thousand|.illion)\b))"
    rf"|(?i:(?:(?<=\bminus)|(?<=\bnegative)) (?=(?:{'|'.join(NUMBER_WORDS)})\b))"
    rf"|(?<={_DIGIT})[ \u00a0\u2009\u202f](?=\d{{3}}(?!\d)|\d+[/⁄]\d|[¼-¾⅐-⅞]|[x×*·-] ?\d|%|(?:USD|EUR|GBP|JPY)\b"
    r"|(?i:thousand|.illion|per ?cent|degree|dollar|euro))"
    r"|(?<=[×*·%$€£¥-]) (?=\d)|(?:(?<=USD)|(?<=EUR)|(?<=GBP)|(?<=JPY)) (?=\d)"
    rf"|(?<={_DIGIT} x) (?=\d)|(?:(?<=minus)(?<!{_DIGIT} minus)|(?<=negative)(?<!{_DIGIT} negative)) (?=[\d.$€£¥])"
    r"|(?:(?<=degree)|(?<=degrees)) (?=[CF]))"
)
_WORD = re.compile(rf"[^\s{_GAP}]+(?:{_JOIN}[^\s{_GAP}]+)*")
_LIST = re.compile(rf";|,(?!\d)|\n|\band\b|&|{_GAP}+")
_PUNCTUATION = " \t\n.,;:!?\"'“”«»*"
_OUTER = _PUNCTUATION + "()[]{}"
# Of a multiple-choice answer: `(B) Paris`, `B. Paris`, `The answer is B`, `option (B)`.
_CHOICE = re.compile(
    r"\A\s*(?:\(([A-J])\)|([A-J])[.):])(?=\s)(?!\s[A-Z]\.)|\b(?i:answer|option|choice)(?:\s+is)?:?\s+\(?([A-J])\b(?!\s+[a-z])\)?"
)
_CHOICE_WORDS = frozenset({"answer", "choice", "correct", "option", "right"})
_SENTENCE_END = tuple(".!?:")
_FUNCTION_WORDS = ARTICLES.union(
    re.findall(
        r"\w+",
        """
        i it he she we us you they me him her his its their our my am is are was were be been do does did has
        have had as at by for from in into of off on or out over per so than that then there these this those
        to under up upon with within without and but if no not nor who whom whose what when where which why
        how will would can could may might must shall should about after before between both during each all
        any some such most more many much few other another only also however because since while although
        though until unless through
        """,
    )
)
# Between capitalised words they belong to the name: `University of Vienna`, `Carl Wilhelm von Scheele`.
_LINKS = frozenset(
    {"of", "the", "de", "del", "della", "der", "den", "di", "du", "da", "la", "le", "van", "von", "zu", "y"}
)


def key_facts(answer: str) -> list[str]:
    """The facts of `answer`, as they are written there, in order, without repeats. A terse answer (see `TERSE_WORDS`)
    gives its content, cut at list separators; a longer one its code, quoted strings, numbers and names. The letter of a
    multiple-choice answer is a fact of its own. A long answer without any of these has no key facts."""
    found: list[tuple[int, str]] = []
    # What was taken leaves a gap, so that its numbers and names do not count twice.
    rest = _take(_CHOICE, answer, found)
    words = _WORD.findall(rest)
    if 0 < len(words) <= 3 or (len(words) <= TERSE_WORDS and not re.search(r"\d", rest)):
        idle = _FUNCTION_WORDS | _CHOICE_WORDS if found else frozenset[str]()
        pieces = [_trim(piece.strip(), _PUNCTUATION) for piece in _LIST.split(rest)]
        terse = [piece for piece in pieces if {token.text.lower() for token in tokens(piece)} - idle]
        return _unique([*(letter for _, letter in found), *terse])
    rest = _take(_CODE, rest, found)
    rest = _take(_QUOTED, rest, found)
    found += _numbers_and_names(rest)
    return _unique(fact for _, fact in sorted(found, key=lambda item: item[0]))


def missing_facts(answer: str, text: str, right: Sequence[str] = ()) -> list[str]:
    """The key facts of `answer` that `text` does not state; empty if it has them all. Where a row names the short
    answers that count as `right`, the fact is one of them, and `answer` its wording. Numbers count by value (`1,538` is
    `1538`, `three` is `3`), words by their sequence without regard to case, accents, punctuation, articles and regular
    plurals. A fact that spells a function word (the symbols `He`, `As`, `No`) counts only in its own case."""
    if right:
        return [] if any(states(text, fact) for fact in right) else [right[0]]
    return [fact for fact in key_facts(answer) if not states(text, fact)]


def invented_facts(known: str, text: str) -> list[str]:
    """Numbers and names in `text` of which `known` (question and gold answer) does not have every word. The first word
    of a sentence, which is capitalised anyway, counts only as part of a longer name."""
    has = {*_canonical(known), *unjoined(_canonical(known))}
    return _unique(
        fact
        for _, fact in _numbers_and_names(text)
        if not has.issuperset(unjoined(_canonical(fact)))
        and any(token not in has and token.partition("'")[0] not in _FUNCTION_WORDS for token in _canonical(fact))
    )


def states(text: str, fact: str) -> bool:
    """Whether `text` contains `fact`, by the rules of `missing_facts`."""
    wanted = tokens(fact)
    if [token.text for token in wanted] == ["A"]:
        return has_symbol(text, "A")
    if is_short(wanted) or all(token.text.casefold() in _FUNCTION_WORDS for token in wanted):
        return _passage(text, cased=True).has([token.text for token in wanted])
    return _passage(text, cased=False).has(_canonical(fact))


def canonical(text: str) -> str:
    """`text` as comparisons see it: case, accents, plurals, punctuation and articles gone, numbers by value."""
    return " ".join(_canonical(text))


@lru_cache(maxsize=16)
def _passage(text: str, *, cased: bool) -> Passage:
    """Kept, since one text is asked for every fact of an answer."""
    return Passage([token.text for token in tokens(text)] if cased else _canonical(text))


@lru_cache(maxsize=256)
def _canonical(text: str) -> tuple[str, ...]:
    return tuple(_singular(key) for key in keys(text))


def _singular(word: str) -> str:
    """A regular English plural without its ending: `Alkali metals` is kept by `is an alkali metal`."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word[:-1]


def _take(pattern: re.Pattern[str], text: str, found: list[tuple[int, str]]) -> str:
    """Add the pattern's groups to `found` with their places; the text with gaps, as long as they, for the matches."""

    def gap(match: re.Match[str]) -> str:
        content = next(group for group in match.groups() if group is not None).strip()
        if tokens(content):
            found.append((match.start(), content))
        return _GAP * len(match.group())

    return pattern.sub(gap, text)


@dataclass(frozen=True)
class _Word:
    """A word of running text, trimmed of outer punctuation."""

    text: str
    start: int
    end: int
    opens: bool
    """The first of a sentence, where a capital says nothing."""
    closes: bool
    """Punctuation follows that ends a name."""


def _words(text: str) -> Iterator[_Word]:
    opens = True
    for match in _WORD.finditer(text):
        word, tail = _trim(match.group(), _OUTER), match.group().rstrip("\"'”»)*")[-1:]
        initial = len(word) == 1 and word.isupper()  # `T. W. Richards` is one name
        ends_sentence = tail in _SENTENCE_END and not initial
        if word:
            yield _Word(word, *match.span(), opens, ends_sentence or match.group()[-1] in ",;)")
        opens = ends_sentence if word else opens or ends_sentence


def _numbers_and_names(text: str) -> list[tuple[int, str]]:
    """Numbers, words with digits in them (`3d6`, `Au-198`), and names, each with its place."""
    facts: list[tuple[int, str]] = []
    run: list[_Word] = []

    def end_name() -> None:
        facts.extend(_name(run, text))
        run.clear()

    for word in _words(text):
        if run and _GAP in text[run[-1].start : word.start]:
            end_name()
        if any(map(str.isdigit, word.text)):
            end_name()
            # `1538` and `10-20` are numbers, read with their brackets, as in `(3,4)`; `H2O` is a word.
            pieces = [word.text] if any(map(str.isalpha, word.text)) else numbers(text[word.start : word.end])
            facts += [(word.start, piece) for piece in pieces]
            continue
        in_name = any(map(str.isupper, word.text)) or (run and word.text in _LINKS)
        if in_name:
            run.append(word)
        if not in_name or word.closes:
            end_name()
    end_name()
    return facts


def _name(run: list[_Word], text: str) -> list[tuple[int, str]]:
    """The name that a run of capitalised words is: none or one."""
    while run and run[-1].text.casefold() in _FUNCTION_WORDS | _LINKS:
        run = run[:-1]
    while run and run[0].opens and run[0].text.casefold() in _FUNCTION_WORDS:
        run = run[1:]
    if not run or (len(run) == 1 and run[0].opens and not any(map(str.isupper, run[0].text[1:]))):
        return []
    return [(run[0].start, _trim(text[run[0].start : run[-1].end], _OUTER))]


def _trim(text: str, outer: str) -> str:
    """`text` without the characters `outer` at its ends, but for the point of `.5` and `.NET`."""
    trimmed = text.strip(outer)
    before = text[: text.find(trimmed)] if trimmed else ""
    return f".{trimmed}" if before.endswith(".") and not before.endswith("..") and trimmed[0].isalnum() else trimmed


def _unique(facts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(facts))
