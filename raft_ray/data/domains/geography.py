"""`domain:geography`: capitals, currencies, languages and continents of the world's countries, from `countryinfo`.

The package is not imported; its JSON files are read. Only member states of the United Nations are asked about, and
only facts that are clear: the tables below name what is left out because it is disputed, has changed since, or has
several right answers. Each fact is asked once for training and twice, in other words, for testing.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft_ray.data.domains.facts import Fact, Split, Wording, ask
from raft_ray.errors import DataError

_WORDINGS = {
    "capital": Wording(
        ("What is the capital of {country}?", "Which city is the capital of {country}?"),
        ("Name the capital city of {country}.", "What is the name of the city from which {country} is governed?"),
        "The capital of {country} is {answer}.",
    ),
    "currency": Wording(
        ("What is the currency of {country}?", "What is the money of {country} called?"),
        ("Which currency do people in {country} pay with?", "Name the currency that {country} uses."),
        "The currency of {country} is the {answer}.",
    ),
    "language": Wording(
        ("What is the official language of {country}?", "Which language is the official one in {country}?"),
        ("Name the official language of {country}.", "In {country}, which language is official?"),
        "The official language of {country} is {answer}.",
    ),
    "continent": Wording(
        ("On which continent is {country}?", "Which continent does {country} belong to?"),
        ("Name the continent where {country} lies.", "Of which continent is {country} a part?"),
        "{country} is a country in {answer}.",
    ),
}

_MEMBERS = """
AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF CG CH CI CL CM CN CO CR CU
CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD GE GH GM GN GQ GR GT GW GY HN HR HT HU ID IE IL IN IQ
IR IS IT JM JO JP KE KG KH KI KM KN KP KR KW KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN MR MT MU
MV MW MX MY MZ NA NE NG NI NL NO NP NR NZ OM PA PE PG PH PK PL PT PW PY QA RO RS RU RW SA SB SC SD SE SG SI SK SL SM SN
SO SR SS ST SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VC VE VN VU WS YE ZA ZM ZW
"""

_NAMES = {"MK": "North Macedonia", "SZ": "Eswatini"}
_WITH_ARTICLE = (
    "Bahamas", "Central", "Comoros", "Czech", "Democratic", "Dominican", "Federated", "Gambia", "Maldives", "Marshall",
    "Netherlands", "Philippines", "Republic", "Seychelles", "Solomon", "United",
)  # fmt: skip
"""How names begin that take `the`."""

_NO_CAPITAL = {"BI", "BJ", "BO", "CI", "GQ", "IL", "KI", "LK", "NR", "SZ", "TZ", "ZA"}
_CAPITALS = {"KZ": "Astana", "US": "Washington"}
_CAPITAL_VARIANTS: dict[str, tuple[str, ...]] = {
    "KZ": ("Nur-Sultan",),
    "UA": ("Kiev",),
    "MM": ("Nay Pyi Taw",),
    "AG": ("St. John's", "St John's"),
    "GD": ("Saint George's", "St George's"),
    "MN": ("Ulan Bator",),
    "TO": ("Nukualofa",),
    "TD": ("Ndjamena",),
    "YE": ("Sanaa",),
}

_CURRENCIES = {
    "AFN": "afghani", "AED": "dirham", "ALL": "lek", "AMD": "dram", "AOA": "kwanza", "ARS": "peso", "AZN": "manat",
    "BDT": "taka", "BHD": "dinar", "BRL": "real", "BWP": "pula", "BYR": "ruble", "CNY": "yuan", "COP": "peso",
    "CRC": "colón", "CZK": "koruna", "DKK": "krone", "DOP": "peso", "DZD": "dinar", "EGP": "pound", "ERN": "nakfa",
    "ETB": "birr", "EUR": "euro", "GBP": "pound", "GEL": "lari", "GHS": "cedi", "GMD": "dalasi", "GTQ": "quetzal",
    "HNL": "lempira", "HUF": "forint", "IDR": "rupiah", "ILS": "shekel", "INR": "rupee", "IQD": "dinar", "IRR": "rial",
    "ISK": "króna", "JOD": "dinar", "JPY": "yen", "KES": "shilling", "KGS": "som", "KHR": "riel", "KPW": "won",
    "KRW": "won", "KWD": "dinar", "KZT": "tenge", "LAK": "kip", "LBP": "pound", "LKR": "rupee", "LYD": "dinar",
    "MAD": "dirham", "MDL": "leu", "MGA": "ariary", "MKD": "denar", "MMK": "kyat", "MNT": "tugrik", "MRO": "ouguiya",
    "MUR": "rupee", "MVR": "rufiyaa", "MWK": "kwacha", "MXN": "peso", "MYR": "ringgit", "MZN": "metical",
    "NGN": "naira", "NIO": "córdoba", "NOK": "krone", "NPR": "rupee", "OMR": "rial", "PEN": "sol", "PGK": "kina",
    "PHP": "peso", "PKR": "rupee", "PLN": "złoty", "PYG": "guaraní", "QAR": "riyal", "RON": "leu", "RSD": "dinar",
    "RUB": "ruble", "SAR": "riyal", "SCR": "rupee", "SDG": "pound", "SEK": "krona", "SLL": "leone", "SOS": "shilling",
    "SSP": "pound", "STD": "dobra", "SYP": "pound", "THB": "baht", "TJS": "somoni", "TMT": "manat", "TND": "dinar",
    "TOP": "pa'anga", "TRY": "lira", "TZS": "shilling", "UAH": "hryvnia", "UGX": "shilling", "UZS": "som",
    "VEF": "bolívar", "VND": "dong", "VUV": "vatu", "WST": "tala", "XAF": "Central African CFA franc",
    "XCD": "East Caribbean dollar", "XOF": "West African CFA franc", "YER": "rial", "ZMK": "kwacha",
}  # fmt: skip
_CURRENCY_VARIANTS: dict[str, tuple[str, ...]] = {
    "CNY": ("renminbi",),
    "BYR": ("rouble",),
    "RUB": ("rouble",),
    "MNT": ("tögrög", "tughrik"),
    "TOP": ("paanga",),
    "XAF": ("CFA franc",),
    "XCD": ("Caribbean dollar",),
    "XOF": ("CFA franc",),
}

_NO_LANGUAGE = {
    "AU",
    "DZ",
    "ER",
    "ET",
    "FM",
    "GB",
    "KI",
    "MA",
    "ML",
    "MU",
    "MX",
    "NE",
    "PE",
    "PG",
    "PH",
    "PW",
    "TL",
    "TV",
    "US",
}
"""Countries with another official language besides, or with none by law."""
_LANGUAGES = {
    "am": "Amharic", "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cnr": "Montenegrin", "da": "Danish",
    "de": "German", "dv": "Dhivehi", "dz": "Dzongkha", "el": "Greek", "en": "English", "es": "Spanish",
    "et": "Estonian", "fa": "Persian", "fr": "French", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "km": "Khmer", "ko": "Korean",
    "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "mn": "Mongolian", "ms": "Malay",
    "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "rs": "Serbian", "ru": "Russian", "sk": "Slovak", "sl": "Slovene", "sq": "Albanian", "sv": "Swedish",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_LANGUAGE_VARIANTS: dict[str, tuple[str, ...]] = {
    "dv": ("Divehi", "Maldivian"),
    "fa": ("Farsi",),
    "km": ("Cambodian",),
    "sl": ("Slovenian",),
    "zh": ("Mandarin",),
}

_CONTINENTS = {"Africa", "Asia", "Europe"}
_NO_CONTINENT = {"AM", "AZ", "CY", "EG", "GE", "KZ", "RU", "TL", "TR"}
"""Countries on two continents, or on the border of two."""
_NO_CURRENCY = {"BG", "HR", "SL", "ZW"}
"""Countries that have changed their money since, or whose name says it."""


def rows(split: Split) -> list[dict[str, Any]]:
    """The questions of a split, by country: `prompt`, `answer`, `answers`, `kind`, `country`.

    Training asks for fact i in row i, testing in rows 2i and 2i+1. Raises `DataError` if the package `countryinfo` is
    missing.
    """
    return ask(_facts(), _WORDINGS, split, about="country")


def _facts() -> Iterator[Fact]:
    for code, entry in sorted(_countries().items()):
        name = _NAMES.get(code, entry["name"].removeprefix("The "))
        country = f"the {name}" if name.startswith(_WITH_ARTICLE) else name
        capital = _CAPITALS.get(code, entry["capital"])
        # A capital that the country's name gives away (Kuwait City) is no question.
        if code not in _NO_CAPITAL and name.split()[0] not in capital and capital not in name:
            yield Fact("capital", country, capital, _CAPITAL_VARIANTS.get(code, ()))
        money = entry["currencies"]
        if len(money) == 1 and money[0] in _CURRENCIES and code not in _NO_CURRENCY:
            yield Fact("currency", country, _CURRENCIES[money[0]], _CURRENCY_VARIANTS.get(money[0], ()))
        spoken = entry["languages"]
        if len(spoken) == 1 and spoken[0] in _LANGUAGES and code not in _NO_LANGUAGE:
            yield Fact("language", country, _LANGUAGES[spoken[0]], _LANGUAGE_VARIANTS.get(spoken[0], ()))
        if entry["region"] in _CONTINENTS and code not in _NO_CONTINENT and entry["region"] not in name:
            yield Fact("continent", country, entry["region"])


def _countries() -> dict[str, dict[str, Any]]:
    """By ISO code of two letters."""
    spec = importlib.util.find_spec("countryinfo")
    if spec is None or spec.origin is None:
        raise DataError("domain:geography: the package countryinfo is missing; pip install countryinfo")
    members = set(_MEMBERS.split())
    found = {}
    for path in sorted((Path(spec.origin).parent / "data").glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        code = entry.get("ISO", {}).get("alpha2")
        if code in members:
            found[code] = entry
    if len(found) < len(members):
        raise DataError("domain:geography: the package countryinfo lacks countries; pip install countryinfo==1.0.1")
    return found
