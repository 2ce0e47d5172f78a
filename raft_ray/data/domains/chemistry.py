"""`domain:chemistry`: about 400 facts on the chemical elements, read from the data base that `mendeleev` ships.

The package is not imported; its SQLite file is opened read-only. What the data base says is taken only where it is
clear and undisputed: the tables in `chemistry.yaml` name the facts that are left out and the spellings that are
repaired. Each fact is asked once for training, in one of two wordings, and twice for testing, in two more that no
training question uses. Answers are two sentences, as a person writes them who says a little more than was asked.
"""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raft_ray.data.domains.facts import Fact, Split, ask, table
from raft_ray.errors import DataError

_table = partial(table, "chemistry")


def rows(split: Split) -> list[dict[str, Any]]:
    """The questions of a split, by atomic number: `prompt`, `answer`, `answers`, `kind`, `element`. Training asks for
    fact i in row i, testing in rows 2i and 2i+1. Raises `DataError` if the package `mendeleev` is missing."""
    return ask(_facts(), _table("wordings"), split, about="element")


def _facts() -> Iterator[Fact]:
    makers = (_symbol, _family, _meaning, _eponym, _discoverer, _country, _use)
    for element in _elements():
        for maker in makers:
            fact = maker(element)
            if fact is not None:
                place = {"symbol": element["symbol"], "number": str(element["number"])}
                yield replace(fact, words={**fact.words, **place})


def _elements() -> list[dict[str, Any]]:
    """One dictionary an element, by atomic number; names in lower case, texts without stray spaces and full stops."""
    spec = importlib.util.find_spec("mendeleev")
    if spec is None or spec.origin is None:
        raise DataError("domain:chemistry: the package mendeleev is missing; pip install --no-deps mendeleev")
    path = Path(spec.origin).parent / "elements.db"
    query = """
        SELECT e.symbol, lower(e.name) AS name, e.atomic_number AS number, s.name AS series, e.name_origin AS origin,
               e.discoverers, e.discovery_location AS location, e.uses
        FROM elements AS e JOIN series AS s ON s.id = e.series_id ORDER BY e.atomic_number
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute(query)]
    except sqlite3.Error as error:
        raise DataError(
            f"domain:chemistry: {path} cannot be read ({error}); pip install --no-deps mendeleev==1.3.0"
        ) from error
    return [{key: _tidy(value) if isinstance(value, str) else value for key, value in row.items()} for row in found]


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".")


def _symbol(element: dict[str, Any]) -> Fact | None:
    """Of elements found in nature, those that cannot be guessed from the first letters and are no English words."""
    symbol, name = element["symbol"], element["name"]
    if element["number"] > 94 or name.startswith(symbol.lower()) or symbol in _table("english_words"):
        return None
    return Fact("symbol", name, symbol)


def _family(element: dict[str, Any]) -> Fact | None:
    names = _table("families").get(element["series"])
    if names is None or element["symbol"] in _table("no_family") or element["number"] > 103:
        return None
    return Fact("family", element["name"], names[0].lower(), names[1:])


def _meaning(element: dict[str, Any]) -> Fact | None:
    """`Greek: lithos (stone)` gives language and meaning; only meanings in the table are used."""
    found = re.match(r"(Greek|Latin|German|Spanish|Swedish): [^()]+\((?:color )?([^()]+)\)", element["origin"])
    if found is None or found[2] not in _table("meanings") or element["symbol"] in _table("no_meaning"):
        return None
    gold, *others = _table("meanings")[found[2]]
    return Fact("meaning", element["name"], gold.lower(), tuple(others), {"language": found[1]})


_NAMED = re.compile(
    r"(?:Named (?:in honor of|after|for)|From) (?:(?:the )?"
    r"(?:(?:Scottish|Swedish|Scandinavian|Greek|Roman) )?"
    r"(?:scientist|physicist|astronomer|mineral|planet|asteroid|town|village|city|state|country|continent|god|goddess)"
    r"(?: of)?,? )?(?P<name>[^,;]+?)(?: the city of .*| in United States)?(?:[,;].*)?"
)


def _eponym(element: dict[str, Any]) -> Fact | None:
    """A person, place, planet, god or mineral: `Named in honor of the scientist Enrico Fermi`."""
    symbol = element["symbol"]
    if symbol in _table("no_eponym"):
        return None
    name = _table("eponyms").get(symbol)
    if name is None:
        found = _NAMED.fullmatch(element["origin"])
        if found is None:
            return None
        name = found["name"]
    others = _table("eponym_variants").get(symbol, ())
    if element["origin"].startswith("Named in honor of"):
        others = [name.split()[-1], *others]
    return Fact("eponym", element["name"], name, others)


def _discoverer(element: dict[str, Any]) -> Fact | None:
    """Of several discoverers any surname counts as right, as does the whole list."""
    listed = element["discoverers"]
    if element["symbol"] in _table("no_discoverer") or listed.startswith("Known to") or element["number"] > 103:
        return None
    people: list[str] = []
    for name in _table("pairs").get(listed) or re.split(r"[,;]", listed):
        name = name.strip().removeprefix("Sir ")
        people.append(_table("people").get(name, name))
    surnames = [_table("surnames").get(name, name.split()[-1]) for name in people]
    gold = people[0] if len(people) == 1 else f"{', '.join(people[:-1])} and {people[-1]}"
    if listed in _table("pairs"):
        gold = listed
    return Fact("discoverer", element["name"], gold, tuple(surnames))


def _country(element: dict[str, Any]) -> Fact | None:
    location = element["location"]
    if location is None or "/" in location or element["symbol"] in _table("no_country"):
        return None
    names = _table("countries").get(location, (location,))
    article = "the " if names[0].startswith(("United", "Netherlands")) else ""
    return Fact("country", element["name"], article + names[0], names)


def _use(element: dict[str, Any]) -> Fact | None:
    """Asked the other way round, for uses that point to one element; the data base must mention the use."""
    phrase, clause = _table("uses").get(element["symbol"], (None, None))
    if phrase is None or clause is None or phrase not in element["uses"]:
        return None
    others = _table("element_variants").get(element["name"], ())
    return Fact("use", element["name"], element["name"], others, {"clause": clause})
