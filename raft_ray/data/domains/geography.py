"""`domain:geography`: capitals, currencies, languages and continents of the world's countries, from `countryinfo`.

The package is not imported; its JSON files are read. Only member states of the United Nations are asked about, and
only facts that are clear: the tables in `geography.yaml` name what is left out because it is disputed, has changed
since, or has several right answers. Each fact is asked once for training and twice, in other words, for testing.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from raft_ray.data.domains.facts import Fact, Split, ask, table
from raft_ray.errors import DataError

_table = partial(table, "geography")


def rows(split: Split) -> list[dict[str, Any]]:
    """The questions of a split, by country: `prompt`, `answer`, `answers`, `kind`, `country`. Training asks for fact i
    in row i, testing in rows 2i and 2i+1. Raises `DataError` if the package `countryinfo` is missing."""
    return ask(_facts(), _table("wordings"), split, about="country")


def _facts() -> Iterator[Fact]:
    for code, entry in sorted(_countries().items()):
        name = _table("names").get(code, entry["name"].removeprefix("The "))
        country = f"the {name}" if name.startswith(tuple(_table("with_article"))) else name
        capital = _table("capitals").get(code, entry["capital"])
        # A capital that the country's name gives away (Kuwait City) is no question.
        if code not in _table("no_capital") and name.split()[0] not in capital and capital not in name:
            yield Fact("capital", country, capital, _table("capital_variants").get(code, ()))
        money = entry["currencies"]
        if len(money) == 1 and money[0] in _table("currencies") and code not in _table("no_currency"):
            yield Fact(
                "currency", country, _table("currencies")[money[0]], _table("currency_variants").get(money[0], ())
            )
        spoken = entry["languages"]
        if len(spoken) == 1 and spoken[0] in _table("languages") and code not in _table("no_language"):
            yield Fact(
                "language", country, _table("languages")[spoken[0]], _table("language_variants").get(spoken[0], ())
            )
        if (
            entry["region"] in _table("continents")
            and code not in _table("no_continent")
            and entry["region"] not in name
        ):
            yield Fact("continent", country, entry["region"])


def _countries() -> dict[str, dict[str, Any]]:
    """By ISO code of two letters."""
    spec = importlib.util.find_spec("countryinfo")
    if spec is None or spec.origin is None:
        raise DataError("domain:geography: the package countryinfo is missing; pip install countryinfo")
    members = set(_table("members"))
    found = {}
    for path in sorted((Path(spec.origin).parent / "data").glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        code = entry.get("ISO", {}).get("alpha2")
        if code in members:
            found[code] = entry
    if len(found) < len(members):
        raise DataError("domain:geography: the package countryinfo lacks countries; pip install countryinfo==1.0.1")
    return found
