"""Values that came from the environment (`${oc.env:NAME}`): resolved in memory, a reference wherever they are written.

Knows nothing about which keys there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import getitem
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from raft_ray.errors import ConfigError
from raft_ray.printable import hide

_VARIABLE = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")
_SECRET_FIELDS = ("secret", "token", "passw", "access_key", "accesskey", "api_key", "apikey", "sig", "credential")


class Reference(str):
    """A text with the reference that it was resolved from. Terminals show the reference for it."""

    reference: str

    def __new__(cls, value: str, reference: str) -> Reference:
        made = super().__new__(cls, value)
        made.reference = reference
        # Each variable by itself: what a program says may hold one of several, or part of the text around it.
        names = [name for name in _VARIABLE.findall(reference) if os.environ.get(name)]
        for name in names:
            hide(os.environ[name], f"${{oc.env:{name}}}")
        if not names and "oc.env" in reference:
            hide(value, reference)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Reference, (str(self), self.reference)

    def __deepcopy__(self, _: Any) -> Reference:
        return self


def shown(value: Any) -> Any:
    """`value` as it is written and printed: plain containers, with references in place of what they resolved to."""
    if isinstance(value, Reference):
        return value.reference
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {each.name: shown(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: shown(each) for key, each in value.items()}
    return [shown(each) for each in value] if isinstance(value, list) else value


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Path -> value, of everything in plain containers that is no container."""
    if isinstance(values, Mapping | list):
        for name, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield from leaves(value, (*path, name))
    else:
        yield path, values


def keep_references(config: Any, raw: Mapping[str, Any]) -> None:
    """Make a `Reference` of every text in `config` that holds a value from the environment. `config`: resolved; its
    sections are changed. `raw`: the same as plain containers, interpolations unresolved."""
    values = [os.environ[name] for name in _VARIABLE.findall(str(raw)) if os.environ.get(name)]
    for path, text in leaves(raw):
        if not (isinstance(text, str) and "${" in text):
            continue
        owner = config
        for name in path[:-1]:
            owner = getattr(owner, name) if is_dataclass(owner) else getitem(owner, name)
        resolved = getattr(owner, path[-1]) if is_dataclass(owner) else owner[path[-1]]
        # `${data.train}` stands for whatever that key has.
        if isinstance(resolved, str) and ("oc.env" in text or any(value in resolved for value in values)):
            reference = Reference(resolved, text)
            if is_dataclass(owner):
                setattr(owner, path[-1], reference)
            else:
                owner[path[-1]] = reference


def check_no_credentials(values: Mapping[str, Any]) -> None:
    """Refuse a URI that holds credentials, which would reach files and logs. Raises `ConfigError` naming the key,
    without the URI."""
    for path, value in leaves(values):
        if isinstance(value, str) and "://" in value and (secret := _secret_in(value)):
            raise ConfigError(
                f"{'.'.join(map(str, path))}={value.partition('://')[0]}://...: holds credentials ({secret}), which "
                "would be written into the run folder; leave them out of the URI and give them in the environment "
                "(such as AWS_ACCESS_KEY_ID)"
            )


def _secret_in(uri: str) -> str | None:
    """What of a URI is secret, in words."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    # Azure writes CONTAINER@ACCOUNT, HDFS USER@HOST.
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or parts.scheme in ("s3", "gs", "gcs", "http", "https")):
        return "a user or key before @"
    asked = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return next((name for name in asked if any(word in name.lower() for word in _SECRET_FIELDS)), None)
