"""What two texts have in common where spelling does not matter: texts as tokens with a key that is compared.

Evaluation (`raft_ray.evaluate.domain`) and stage 1 (`raft_ray.refine.key_facts`) read texts through it, so that a
fact which stage 1 keeps is one that evaluation finds. Knows nothing about models, rows or what counts as right.

| what | rule | example |
|---|---|---|
| Unicode | NFKC; invisible characters, ® and ™ are dropped | `ﬁre` is `fire`, `H₂O` is `H2O` |
| case | none, but for answers of one or two letters (`has_symbol`) | `PARIS` is `Paris`, `au` is not `Au` |
| accents | dropped on Latin, Greek, Arabic and Hebrew letters | `Padme` is `Padmé` |
| articles | `the`, `an` and `a` are dropped; a capital `A` inside is a name | `vitamin A` is not `vitamin` |
| possessive | `'s` is dropped | `Bohr's model` is `Bohr model` |
| initials | joined without their points | `U.S.` is `US`, `e.g.` is `eg` |
| names with signs | one word | `C++`, `C#`, `.NET`, `Fe2+`, an email address |
| scripts without spaces | a token per character | `北京` is in `首都是北京。` |
| numbers | by value, with their sign; digits of any script | `−38.80` is `-38.8`, `+5` is `5`, `.5` is `0.5` |
| thousands | `,` `'` `_` space before three digits; `.` if twice or before `,` | `1 000`, `1.000.000` |
| two groups, plain space | one number, or two unless the second begins with 0 (`occurs`) | `404 500`, not `1 000` |
| decimal comma | where it cannot be thousands, a list or a pair | `3,14` is `3.14`; `1,234`; not `1,2,3`, `(2,5)` |
| other forms | proper fractions, powers of ten, words to twenty, thousand to trillion | `½`, `10^3`, `three million` |
| `one` | 1, except in `one of`, `no one`, `the one` and the like | |
| codes | three or more digits with a zero in front, version numbers | `007`, `1.2.3` as they stand |
| dates, times | numbers joined by `-` or `:`; their order is not interpreted | `1/2/2020` is `01.02.2020` |
| ranges | `-`, any dash or `to` between numbers | `5–10` is `5 to 10` |
| units | currency as sign, code or word, after its number; percent; others as they stand | `$5` is `5 USD` |
| symbols | mathematical signs, `^`, `&` (`and`), emoji are tokens | `x > 5` is not `x < 5` |
| other punctuation | separates words | `card_arrival` is `card arrival` |
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import regex

ARTICLES = frozenset({"a", "an", "the"})

_UNSEEN = r"\p{Cf}\p{Default_Ignorable_Code_Point}"
_SEEN = regex.compile(rf"[^\s\p{{Z}}\p{{Cc}}\p{{Cs}}{_UNSEEN}\u2800]")
_DROPPED = regex.compile(rf"[{_UNSEEN}\u2800©®™℠]+")
_SUPERSCRIPT = regex.compile(r"(?<=\p{N})([⁺⁻]?[⁰¹²³⁴-⁹]+)")
_NARROW = regex.compile(r"(?<=\p{Nd})[\u00a0\u2007-\u200a\u202f](?=\p{Nd}{3}(?!\p{N}))")
_TWO_NUMBERS = regex.compile(r"(\d{1,3}) ([1-9]\d\d)")
_MIXED = regex.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_MARKS = regex.compile(r"([\p{Latin}\p{Greek}\p{Arabic}\p{Hebrew}])\p{Mn}+")
# As pandoc reads it: no space inside the dollars, no digit after them.
_FORMULA = regex.compile(r"\$(?=\S)([^$\n]{1,200}?)(?<=\S)\$(?!\d)")
_DATE = regex.compile(r"(?<![\d./])(?:(\d{1,2})([./])(\d{1,2})\2(\d{4})|(\d{4})([./])(\d{1,2})\6(\d{1,2}))(?![./]?\d)")
_DEGREES = regex.compile(r"(?:°|(?<=\d ?)(?i:degrees?)) ?([CF])(?i:(?<=c)elsius|(?<=f)ahrenheit)?\b")
_SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
        **dict.fromkeys("‘’ʼ′", "'"),
        "\u2044": "/",
        "٫": ".",
        "٬": ",",
        "٪": "%",
        "♯": "#",
    }
)

_UNSPACED = r"(?:[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\uac00-\ud7af](?:(?!\p{Nd})\p{M})*)"
_IN_WORD = rf"(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_VALUES = {word: str(value) for value, word in enumerate(NUMBER_WORDS)}
_WORDS = "|".join(NUMBER_WORDS)
# `three million` and `minus five`; not the end of `forty-five million` or the beginning of `minus twenty-five`.
_SPELLED = rf"""
    (?<spelled>\b(?<!\p{{L}}-|(?i:ty|hundred|hundred\ and|point)\ )(?i:{_WORDS})\b(?:
        (?=\ (?i:thousand|million|billion|trillion)\b)
      | (?<=\b(?i:minus|negative)\ (?i:{_WORDS}))(?!-\p{{L}}|\ (?i:hundred|point|{_WORDS})\b)))
"""
_WHOLE = r"""
    (?<mixed>\d{1,9}\ )?(?<![/\d])(?<over>\d{1,9})/(?<under>\d{1,9})(?![/\d])
  | (?<point>[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?:,\d+)?|(?:\.\d{3})+,\d+))(?![.,]?\d)
  | (?<version>\d+(?:\.\d+){2,}(?!\.?\d))
  | (?<comma>(?<!\d,)(?!(?<=[(\[{][-+]?)\d+,\d+\\?[)\]}])(?:\d+,(?:\d\d?|\d{4,})|(?:0|\d{4,}),\d{3}))(?![.,]?\d)
  | (?<plain>(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?:[ \u202f]\d{3})+|(?:'\d{3})+|(?:_\d{3})+)(?!\d)
              |[1-9]\d?(?:,\d\d){1,9},\d{3}(?!\d)|\d+)(?:\.\d+)?|(?<![\p{L}\p{N}.])\.\d+)
"""
_NUMBER = rf"""
    (?:(?<!\p{{N}}[ ])(?<![\p{{L}}\p{{N}})\]%])(?:(?<sign>[-+]|±\ ?)|(?<sign>(?i:minus|negative))\ +))?
    (?:(?<currency>\p{{Sc}}|\b(?:USD|EUR|GBP|JPY)(?=[ \d]))\ ?(?<sign>-)?)?
    (?:{_SPELLED}|{_WHOLE})
    (?:[eE](?<exponent>[-+]?\d{{1,5}})(?![\p{{L}}\p{{N}}])
      |\ ?[x×*·]\ ?10\^(?<exponent>[-+]?\d{{1,5}})(?!\d)|\^(?<power>[-+]?\d{{1,5}}))?
    (?:\ ?(?<scale>(?i:thousand|million|billion|trillion))\b)?
"""
_TOKEN = regex.compile(
    rf"""
    (?<email>[\w.+-]{{1,64}}+@[\w-]{{1,63}}(?:\.[\w-]{{1,63}})+)
  | (?<number>{_NUMBER})
  | (?<range>(?<=\d)(?:\ ?-\ ?|\ +to\ +)(?=-?\d))
  | (?<times>(?<=\d)\ ?[x×*]\ ?(?=\d))
  | (?<unit>(?<=(?:\d|illion|thousand)\ ?)(?:%|(?i:per\ ?cent|degrees?|dollars?|euros?)\b|(?:USD|EUR|GBP|JPY)\b))
  | (?<char>{_UNSPACED})
  | (?<initials>(?<!{_IN_WORD})(?:\p{{Lu}}\.(?:\ \p{{Lu}}\.){{1,5}}(?=\ \p{{Lu}}\p{{Ll}}{{2}})
      |(?:\p{{L}}\.)+\p{{L}}(?!{_IN_WORD})\.?))
  | (?<word>(?:(?<![\p{{L}}\p{{N}}.])\.(?=\p{{Ll}}{{1,5}}\b|(?i:NET)\b))?
      {_IN_WORD}+(?:'(?i:t|s|ll|re|ve|d|m)\b)?
      (?:\+\+|[+\#]+(?!{_IN_WORD}|[+\#])|(?<=\b\p{{Lu}}\p{{Ll}}?\d?|OH)-(?=[\s.,;:!?)\]"'”»`*_]|$)(?!\ (?:and|or)\b))?)
  | (?<symbol>->|=>|<=|>=|!=|==|(?<=\d):(?=\d)|(?<=\b\w)\ -\ (?=\w\b)|[\p{{Sc}}\p{{Sm}}\p{{So}}%‰°&^--[|~]])
    """,
    regex.VERBOSE | regex.VERSION1,
)

_SIGNS = {"->": "→", "=>": "⇒", "<=": "≤", ">=": "≥", "!=": "≠", "==": "=", " - ": "-", "&": "and"}
_SEPARATORS = dict.fromkeys(map(ord, ", '_\u202f"))
_UNITS = {"usd": "$", "dollar": "$", "eur": "€", "euro": "€", "gbp": "£", "jpy": "¥", "degree": "°"}
_SCALES = {"": 0, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NO_NUMBER = regex.compile(
    r"(?i)(?<=\b(?:no|any|every|some|each|the|this|that|another|which|only) )one\b|\bone(?= of\b|-|'s\b)"
)

_WINDOW = 100
"""Characters before and after a word in which its use is looked for."""

# English words that are element symbols too, with what they stand for.
_SYMBOLS_AND_WORDS = {
    **dict.fromkeys(("An", "By", "Do", "If", "Is", "It", "Of", "On", "So", "To"), ""),
    **{"Am": "americium", "As": "arsenic", "At": "astatine", "Be": "beryllium", "He": "helium", "I": "iodine"},
    **{"In": "indium", "No": "nobelium"},
}


@dataclass(frozen=True)
class Token:
    """A word, number or symbol."""

    text: str
    """In its own case."""
    key: str
    """What is compared."""
    start: int
    """Of its first character in the folded text."""
    end: int
    is_number: bool = False
    is_symbol: bool = False
    """A sign or unit: neither word nor number."""


class _Joined(str):
    """The value of two groups of digits with a plain space between, which may be two numbers as well."""

    parts: tuple[str, ...]

    def __new__(cls, value: str, parts: Iterable[str]) -> _Joined:
        joined = super().__new__(cls, value)
        joined.parts = tuple(_decimal("", part, 0) if len(part) < 3 else part for part in parts)
        return joined


def visible(text: str) -> bool:
    """Whether there is anything to see in `text`: more than spaces, control and zero-width characters."""
    return _SEEN.search(text) is not None


def fold(text: str) -> str:
    """`text` with one spelling for each character; letters keep their case."""
    text = _SUPERSCRIPT.sub(r"^\1", text)
    parts = _NARROW.split(_DROPPED.sub("", _MIXED.sub(" ", text)))
    # NFKC makes plain spaces of those that only thousands have.
    text = "\u202f".join(unicodedata.normalize("NFKC", part) for part in parts).translate(_SPELLINGS)
    text = unicodedata.normalize("NFC", _MARKS.sub(r"\1", unicodedata.normalize("NFD", text)))
    text = regex.sub(r"[^\P{Cc}\n\t]", " ", text)
    text = regex.sub(r"(?![0-9])\p{Nd}", lambda digit: str(unicodedata.digit(digit.group())), text)
    text = _DEGREES.sub(r" \1", _FORMULA.sub(r"\1", text))
    text = regex.sub(r"(?<=\p{L})\^(?=\d)|\bUS(?=\$)", "", text)
    return _DATE.sub(lambda date: "-".join(part for part in date.group(1, 3, 4, 5, 7, 8) if part), text)


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[Token, ...]:
    """The words, numbers and symbols of `text` in order; articles are among them."""
    folded = fold(text)
    no_numbers = {match.start() for match in _NO_NUMBER.finditer(folded)}
    found: list[Token] = []
    for match in _TOKEN.finditer(folded):
        kind, written = match.lastgroup, match.group()
        start, end = match.span()
        if match.group("number") is not None:
            value = _value(match)
            if two := _TWO_NUMBERS.fullmatch(written):
                value = _Joined(value, two.groups())
            found.append(Token(value, value, start, end, is_number=True))
            if currency := match.group("currency"):
                found.append(Token(currency, _UNITS.get(currency.lower(), currency), end, end, is_symbol=True))
        elif match.group("unit") is not None:
            name = written.lower().removesuffix("s")
            key = "%" if name.startswith("per") else _UNITS.get(name, name)
            found.append(Token(written, key, start, end, is_symbol=True))
        elif kind in ("range", "times", "symbol"):
            key = {"range": "-", "times": "×"}.get(kind) or _SIGNS.get(written, written)
            found.append(Token(written.strip(), key, start, end, is_symbol=True))
        elif kind == "initials":
            joined = regex.sub(r"[. ]", "", written)
            found.append(Token(joined, joined.casefold(), start, end))
        else:
            key = regex.sub(r"'s$", "", written.casefold())
            found.append(Token(written, key if start in no_numbers else _VALUES.get(key, key), start, end))
    return tuple(found)


def words(text: str) -> list[str]:
    """Words and numbers of `text`, in their own case: what lengths are counted in."""
    return [token.text for token in tokens(text) if not token.is_symbol]


def numbers(text: str) -> list[str]:
    """The numbers of `text` as they are written, each with its sign and the currency or percent sign beside it."""
    folded, found = fold(text), tokens(text)
    written = []
    for token, after in zip(found, [*found, None][1:], strict=True):
        if token.is_number:
            beside = after is not None and after.start == token.end and (after.key == "%" or after.key in "$€£¥")
            written.append(folded[token.start : after.end if after and beside else token.end])
    return written


def keys(text: str, *, answer: bool = False) -> list[str]:
    """What of `text` is compared: the tokens' keys without articles; a text of nothing but articles keeps them. An
    `answer` may open with a capital article, which elsewhere is a name (vitamin A)."""
    found = tokens(text)
    kept = [
        token.key
        for place, token in enumerate(found)
        if token.key not in ARTICLES or (token.text == "A" and not (answer and place == 0))
    ]
    return kept or [token.key for token in found]


class Passage:
    """The words of a text, joined once, so that looking for many others costs a search in a string for each."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._text = _side_by_side(words)

    def has(self, wanted: Sequence[str]) -> bool:
        """Whether `wanted` stand in it side by side, in their order; either may have its numbers `unjoined`."""
        return _side_by_side(wanted) in self._text or _side_by_side(unjoined(wanted)) in self._apart

    @cached_property
    def _apart(self) -> str:
        """With its numbers unjoined; empty where it has none to take apart."""
        apart = unjoined(self._words)
        return _side_by_side(apart) if len(apart) > len(self._words) else ""


def occurs(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `words` have `wanted`, as a `Passage` has them."""
    return Passage(words).has(wanted)


def unjoined(keys: Iterable[str]) -> list[str]:
    """`keys` with two numbers for each that two groups of digits and a plain space may also be: `404 500`."""
    return [part for key in keys for part in (key.parts if isinstance(key, _Joined) else (key,))]


def is_short(found: Sequence[Token]) -> bool:
    """Whether tokens are a symbol that is compared with its case: one or two letters of a script with spaces."""
    return len(found) == 1 and found[0].text.isalpha() and len(found[0].text) <= 2 and not _unspaced(found[0].text)


def has_symbol(text: str, symbol: str) -> bool:
    """Whether `symbol` is a word of `text` in this case, other than as an English word (`He wrote`, `A dog`)."""
    folded = fold(text)
    return any(token.text == symbol and not _is_prose(folded, token) for token in tokens(text))


def has_punctuation(text: str, answer: str) -> bool:
    """Whether `answer`, nothing but punctuation, stands in `text` by itself or in quotes."""
    quotes = r"\s\"'`“”‘’«»()"
    mark = fold(answer).strip()
    if not mark:
        # Signs that no spelling keeps, such as ®.
        return answer.strip() in text
    alone = rf"(?<![^{quotes}]){regex.escape(mark)}(?![^{quotes}.]|{regex.escape(mark[-1])})"
    return regex.search(alone, fold(text)) is not None


def _side_by_side(words: Sequence[str]) -> str:
    """As text, since `in` takes linear time there; no key holds a NUL."""
    return "\0".join(["", *words, ""])


def _unspaced(text: str) -> bool:
    return regex.fullmatch(_UNSPACED, text[:1]) is not None


def _is_prose(folded: str, token: Token) -> bool:
    """Whether a token that may be a symbol is used as the English word that it spells."""
    before = folded[max(0, token.start - _WINDOW) : token.start].rstrip(" \t\"'“«*_")
    after = folded[token.end : token.end + _WINDOW]
    opens = not before or before[-1] in ".!?:\n"
    if not regex.match(r"(?:\s+|')\p{Ll}", after):
        return False
    if token.text == "A":
        return opens and not regex.match(r"\s+(?:is|was|and|or)\b", after)
    if token.text not in _SYMBOLS_AND_WORDS or not (opens or token.text == "I"):
        return False
    # `He is helium`, `In stands for indium`
    name = _SYMBOLS_AND_WORDS[token.text] or r"\b\B"
    return not regex.match(
        r"\s+(?:is|means|denotes|represents|stands\s+for)\s+"
        rf"(?:the\s+(?:chemical\s+)?symbol\b|(?:the\s+element\s+)?{name}\b)",
        after,
    )


def _value(match: regex.Match[str]) -> str:
    """A number by its value: equal numbers get equal texts."""
    if power := match.group("power"):
        base = _value(_TOKEN.match(match.group().partition("^")[0]))
        return _decimal("", "1", int(power)) if base == "10" else f"{base}^{int(power)}"
    # The last of the signs that were captured, since `$-5` has its own after the currency.
    sign = {"+": "", "±": "±"}.get((match.group("sign") or "+").strip(), "-")
    scale = _SCALES[(match.group("scale") or "").lower()] + int(match.group("exponent") or 0)
    if version := match.group("version"):
        return sign + version
    if over := match.group("over"):
        return sign + _fraction(match.group("mixed"), over, match.group("under"), scale)
    if spelled := match.group("spelled"):
        written = _VALUES[spelled.lower()]
    elif point := match.group("point"):
        written = point.replace(".", "").replace(",", ".")
    elif comma := match.group("comma"):
        written = comma.replace(",", ".")
    else:
        written = match.group("plain").translate(_SEPARATORS)
    whole, _, decimals = written.partition(".")
    if len(whole) > 2 and whole.startswith("0") and not decimals and not scale:
        return sign + whole
    return _decimal(sign, whole + decimals, scale - len(decimals))


def _fraction(mixed: str | None, over: str, under: str, scale: int) -> str:
    if int(under) == 0 or (int(over) >= int(under) and not scale):
        return f"{mixed or ''}{over}/{under}"  # a date, a score or a name rather than a value
    value = int(mixed or 0) + Fraction(int(over), int(under))
    rest, places = value.denominator, 0
    while rest % 10 == 0 or rest % 5 == 0 or rest % 2 == 0:
        rest //= 10 if rest % 10 == 0 else 5 if rest % 5 == 0 else 2
        places += 1
    if rest > 1:
        return f"{value.numerator}/{value.denominator}" + (f"e{scale}" if scale else "")
    return _decimal("", str(value.numerator * 10**places // value.denominator), scale - places)


def _decimal(sign: str, digits: str, exponent: int) -> str:
    """`digits` times ten to the `exponent`, without idle zeros."""
    digits = digits.lstrip("0")
    if not digits:
        return "0"
    kept = digits.rstrip("0")
    exponent += len(digits) - len(kept)
    if exponent > 30 or exponent < -30:
        return f"{sign}{kept}e{exponent}"
    if exponent >= 0:
        return sign + kept + "0" * exponent
    padded = kept.rjust(1 - exponent, "0")
    return f"{sign}{padded[:exponent]}.{padded[exponent:]}"
