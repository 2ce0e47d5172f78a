"""A config as YAML with every key's meaning above it, taken from the docstrings in `raft_ray.config`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from omegaconf import OmegaConf

from raft_ray.config import Config
from raft_ray.config.keys import choices, entry_type, hints, is_section
from raft_ray.config.references import shown

_WIDTH = 110


def explained(config: Config) -> str:
    """`to_yaml(config)` with comments; `load` reads it back to the same config."""
    return "\n".join(_lines(Config, shown(config), "")).lstrip("\n") + "\n"


def _lines(section: type, values: dict[str, Any], indent: str) -> Iterator[str]:
    for name, kind in hints(section).items():
        if is_section(kind):
            yield from () if indent else ("",)
            yield f"{indent}{name}:"
            yield from _lines(kind, values[name], f"{indent}  ")
        else:
            for comment in _comments(section, name, kind):
                yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, _WIDTH))
            entry = OmegaConf.to_yaml(OmegaConf.create({name: values[name]}))
            yield textwrap.indent(entry.rstrip("\n"), indent)


def _comments(section: type, name: str, kind: Any) -> Iterator[str]:
    """The key's docstring, and for an enum each value with its own, for a mapping of sections each of their keys."""
    if text := _docs(section).get(name):
        yield text
    if values := choices(kind):
        meanings = {value: _docs(kind).get(value) for value in values}
        if any(meanings.values()):
            yield from (f"{value}: {meaning}" if meaning else value for value, meaning in meanings.items())
        else:
            yield f"One of {', '.join(values)}."
    if entry := entry_type(kind):
        for key in hints(entry):
            yield f"NAME.{key}: {_docs(entry).get(key, f'default {getattr(entry, key)}')}"


@cache
def _docs(owner: type) -> dict[str, str]:
    """Attribute of a section or an enum -> the docstring under it."""
    docs: dict[str, str] = {}
    (definition,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(definition, ast.ClassDef)
    for attribute, after in pairwise(definition.body):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            target = attribute.targets[0] if isinstance(attribute, ast.Assign) else getattr(attribute, "target", None)
            if isinstance(target, ast.Name):
                docs[target.id] = inspect.cleandoc(str(after.value.value))
    return docs
