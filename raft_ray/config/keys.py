"""The keys that there are, read off the sections: their types, what they take in words, the nearest to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from raft_ray.config import Config


@cache
def keys() -> dict[str, Any]:
    """Dotted key -> type, of all keys that can be set."""
    return dict(_keys_in(Config, ""))


@cache
def hints(section: Any) -> dict[str, Any]:
    """The keys of a section, which is a dataclass, with their types; ranges are part of these."""
    types = get_type_hints(section, include_extras=True)
    return {each.name: types[each.name] for each in fields(section)}


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def entry_type(kind: Any) -> Any:
    """The section that each name of a mapping such as `refine.models` stands for; None for every other type."""
    inner = get_args(kind)[1] if get_origin(kind) is dict else None
    return inner if is_section(inner) else None


def type_at(path: Iterable[Any]) -> Any:
    """The type of the key, section or item at `path`; None where there is none, or any will do."""
    kind: Any = Config
    for name in path:
        if is_section(kind):
            kind = hints(kind).get(name)
        elif get_origin(kind) in (list, dict):
            kind = get_args(kind)[-1]
        else:
            return None
    return None if kind is Any else kind


def without_null(kind: Any) -> Any:
    """The type of a key's values other than null."""
    if NoneType not in get_args(kind):
        return kind
    return next(each for each in get_args(kind) if each is not NoneType)


def choices(kind: Any) -> list[str]:
    """The values of an enum; none of another type."""
    return [member.value for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def takes(kind: Any) -> str:
    """What a key of this type takes, in words."""
    if NoneType in get_args(kind):
        return f"{takes(without_null(kind))}, or null"
    if isinstance(kind, UnionType):
        return ", or ".join(takes(each) for each in get_args(kind))
    if allowed := choices(kind):
        return f"one of {', '.join(allowed)}"
    if get_origin(kind) is list and (allowed := choices(get_args(kind)[0])):
        return f"a list of some of {', '.join(allowed)}"
    if entry := entry_type(kind):
        return f"a mapping from names to sections, such as {{mine: {{{next(iter(hints(entry)))}: ...}}}}"
    words = {
        list: "a list, such as [a, b]",
        dict: "a mapping, such as {sft: {learner: {lr: 1e-4}}}",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
    }
    return words[get_args(kind)[0] if get_origin(kind) is Annotated else get_origin(kind) or kind]


def nearest(word: str, possible: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing if no name is near `word`."""
    match = difflib.get_close_matches(word, list(possible), n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


RENAMED = {"rollout.tries": "rollout.max_failures"}
"""Former names that nothing else would lead to the new one."""


def nearest_key(key: str) -> str:
    """A hint for an unknown key: a key below whose name it begins with (`data.prompt_field` for `data.columns.prompt`),
    else one much like it, else a longer name of its section (`distil.temp` is short for
    `distill.temperature`), else keys of that name in other sections, else the nearest."""
    section, _, name = key.rpartition(".")
    if key in RENAMED:
        return f"; did you mean {RENAMED[key]}?"
    deeper = [known for known in keys() if known.startswith(f"{section}.") and known.count(".") > key.count(".")]
    if begins := [known for known in deeper if name.startswith(known.rpartition(".")[2])]:
        return f"; did you mean {max(begins, key=len)}?"
    if section and (much_like := difflib.get_close_matches(key, keys(), n=1, cutoff=0.8)):
        return f"; did you mean {much_like[0]}?"
    sections = sorted({known.split(".")[0] for known in keys()})
    near = difflib.get_close_matches(section, {known.rpartition(".")[0] for known in keys()}, cutoff=0.8)
    longer = [k for k in keys() if k.rpartition(".")[0] in near and len(name) > 2 and name in k.rpartition(".")[2]]
    if found := sorted(longer, key=len)[:1] or [known for known in keys() if known.split(".")[-1] == name]:
        return f"; did you mean {' or '.join(found)}?"
    return nearest(key, [*keys(), *sections]) or f"; sections are {', '.join(sections)}"


def _keys_in(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in hints(section).items():
        if is_section(kind):
            yield from _keys_in(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind
