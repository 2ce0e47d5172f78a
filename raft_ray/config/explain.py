"""A config as YAML with every key's meaning above it, taken from the docstrings in `raft_ray.config`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields
from enum import Enum
from functools import cache
from itertools import pairwise, takewhile
from operator import attrgetter

from omegaconf import OmegaConf

from raft_ray.config import Config, reading

_WIDTH = 110


def explained(config: Config) -> str:
    """`to_yaml(config)` with comments; `load` reads it back to the same config."""
    lines: list[str] = []
    open_sections: list[str] = []
    for key, value in reading.flatten_shown(config).items():
        *sections, name = key.split(".")
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(open_sections, sections, strict=False))))
        for depth in range(shared, len(sections)):
            lines += ["", f"{sections[0]}:"] if depth == 0 and lines else [f"{'  ' * depth}{sections[depth]}:"]
        open_sections = sections
        indent = "  " * len(sections)
        for comment in _comments(sections, name, reading.keys()[key]):
            lines += [f"{indent}# {line}" for line in textwrap.wrap(comment, _WIDTH)]
        entry = OmegaConf.to_yaml(OmegaConf.create({name: value}))
        lines.append(textwrap.indent(entry.rstrip("\n"), indent))
    return "\n".join(lines) + "\n"


def _comments(sections: list[str], name: str, kind: object) -> list[str]:
    """The key's docstring, and for an enum each value with its own, for a mapping of sections each of their keys."""
    owner: type = type(attrgetter(".".join(sections))(Config()))
    comments = [text] if (text := _docs(owner).get(name)) else []
    if isinstance(kind, type) and issubclass(kind, Enum):
        meanings = {member.name: _docs(kind).get(member.name) for member in kind}
        if any(meanings.values()):
            comments += [f"{value}: {meaning}" if meaning else value for value, meaning in meanings.items()]
        else:
            comments.append(f"One of {', '.join(meanings)}.")
    if entry := reading.entry_type(kind):
        comments += [
            f"NAME.{each.name}: {_docs(entry).get(each.name, f'default {each.default}')}" for each in fields(entry)
        ]
    return comments


@cache
def _docs(owner: type) -> dict[str, str]:
    """Attribute of a section or an enum -> the docstring under it."""
    docs: dict[str, str] = {}
    (definition,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(definition, ast.ClassDef)
    for attribute, after in pairwise(definition.body):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        target = attribute.targets[0] if isinstance(attribute, ast.Assign) else getattr(attribute, "target", None)
        if isinstance(target, ast.Name):
            docs[target.id] = inspect.cleandoc(str(after.value.value))
    return docs
