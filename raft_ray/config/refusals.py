"""What pydantic refuses, as one line that names the key, its value, what it takes, and the nearest key there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from raft_ray.config.keys import (
    choices,
    entry_type,
    hints,
    is_section,
    keys,
    nearest,
    nearest_key,
    takes,
    type_at,
    without_null,
)
from raft_ray.config.references import leaves

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "predicate_failed")


def refusal(error: ErrorDetails, values: Any) -> tuple[tuple[int | str, ...], str]:
    """The path of what is refused, and the line. `values`: what was validated, with references unresolved: what they
    stand for may be secret."""
    path = error["loc"]
    if path[-1] == "[key]" and entry_type(type_at(path[:-2])):
        rule = "a name has letters, digits, - and _ only, and begins with no digit"
        return path[:-1], f"{_dotted(path[:-1])}: {rule}"
    if error["type"] == "unexpected_keyword_argument":
        return path, _unknown(path, _at(values, path))
    while type_at(path) is None or get_origin(type_at(path[:-1])) is list:
        path = path[:-1]
    return path, wrong(path, values, in_range=error["type"] not in _RANGE)


def number_for_boolean(values: Any) -> tuple[Any, ...] | None:
    """The path of a number given for true or false, or the other way round: pydantic takes either for the other."""
    for path, value in leaves(values):
        kind = without_null(type_at(path))
        takes_either = kind in (int, bool) or get_origin(kind) is Annotated
        if takes_either and isinstance(value, bool | int | float) and isinstance(value, bool) != (kind is bool):
            return path[:-1] if isinstance(path[-1], int) else path
    return None


def _unknown(path: tuple[int | str, ...], value: Any) -> str:
    if entry := type_at(path[:-1]) if entry_type(type_at(path[:-2])) else None:
        hint = nearest(str(path[-1]), hints(entry)) or f"; there are {', '.join(hints(entry))}"
        return f"unknown key {_dotted(path)}{hint}"
    key = _dotted(path)
    while isinstance(value, Mapping) and value:
        name, value = next(iter(value.items()))
        key += f".{name}"
    return f"unknown key {key}{nearest_key(key)}"


def wrong(path: tuple[int | str, ...], values: Any, in_range: bool = True) -> str:
    """The line for a value of the wrong kind, or out of its range."""
    key, kind, value = _dotted(path), type_at(path), _at(values, path)
    assigned = f"{key}={'null' if value is None else value}"
    if entry_type(type_at(path[:-1])):
        return f"{assigned}: takes keys, such as {{{next(iter(hints(kind)))}: ...}}"
    if is_section(kind):
        inside = next(known for known in keys() if known.startswith(f"{key}."))
        return f"{key} is a section, not a key; set a key in it, such as {inside}"
    if isinstance(value, Mapping) and get_origin(kind) is not dict:
        return f"unknown key {key}.{next(iter(value), '')}; {key} takes {takes(kind)}"
    if not in_range:
        number, *_, words = get_args(without_null(kind))
        return f"{key}={number(value) if isinstance(value, int) else value}: must be {words}"
    return f"{assigned}: takes {takes(kind)}{nearest(str(value), choices(kind))}"


def _at(values: Any, path: tuple[int | str, ...]) -> Any:
    """The value at `path`, or the reference that stands for it and what is around it."""
    for name in path:
        if not isinstance(values, Mapping):
            return values
        values = values[name]
    return values


def _dotted(path: tuple[int | str, ...]) -> str:
    return ".".join(map(str, path))
