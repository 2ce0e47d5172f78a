"""A config as YAML with every key's meaning above it, taken from the docstrings in `raft_ray/config.py`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from enum import Enum
from functools import cache

from omegaconf import OmegaConf

from raft_ray import config as schema
from raft_ray.config import Config
from raft_ray.settings import reading

_WIDTH = 110


def explained(config: Config) -> str:
    """`to_yaml(config)` with comments; `load` reads it back to the same config."""
    lines: list[str] = []
    section = ""
    for key, value in reading.flatten(config).items():
        owner, name = key.split(".")
        if owner != section:
            lines += ["", f"{owner}:"] if section else [f"{owner}:"]
            section = owner
        for comment in _comments(owner, name, reading.keys()[key]):
            lines += [f"  # {line}" for line in textwrap.wrap(comment, _WIDTH)]
        entry = OmegaConf.to_yaml(OmegaConf.create({name: value}))
        lines.append(textwrap.indent(entry.rstrip("\n"), "  "))
    return "\n".join(lines) + "\n"


def _comments(section: str, name: str, kind: object) -> list[str]:
    """The key's docstring, and for an enum each value with its own."""
    owner = type(getattr(Config(), section)).__name__
    comments = [text] if (text := _docs().get((owner, name))) else []
    if isinstance(kind, type) and issubclass(kind, Enum):
        meanings = {member.name: _docs().get((kind.__name__, member.name)) for member in kind}
        if any(meanings.values()):
            comments += [f"{value}: {meaning}" if meaning else value for value, meaning in meanings.items()]
        else:
            comments.append(f"One of {', '.join(meanings)}.")
    return comments


@cache
def _docs() -> dict[tuple[str, str], str]:
    """(class, attribute) -> the docstring under that attribute."""
    docs: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for attribute, after in zip(node.body, node.body[1:], strict=False):
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                continue
            target = attribute.targets[0] if isinstance(attribute, ast.Assign) else getattr(attribute, "target", None)
            if isinstance(target, ast.Name):
                docs[node.name, target.id] = inspect.cleandoc(str(after.value.value))
    return docs
