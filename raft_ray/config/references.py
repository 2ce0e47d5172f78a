"""Values that came from the environment (`${oc.env:NAME}`): resolved in memory, a reference wherever they are written.

Knows nothing about which keys there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
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
    """`value` as it is written and printed: with references in place of what they resolved to, at any depth."""
    if isinstance(value, Reference):
        return value.reference
    if isinstance(value, Mapping):
        return {key: shown(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [shown(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{each.name: shown(getattr(value, each.name)) for each in fields(value)})
    return value


def with_references(config: Any, raw: Any) -> Any:
    """`config` with every text that holds a value from the environment as a `Reference`.

    Args:
        config: resolved; its sections are changed.
        raw: the same as plain containers, interpolations unresolved.
    """
    values = [os.environ[name] for name in _VARIABLE.findall(str(raw)) if os.environ.get(name)]

    def walk(resolved: Any, raw: Any) -> Any:
        if isinstance(resolved, str) and isinstance(raw, str) and "${" in raw:
            # `${data.train}` stands for whatever that key has.
            held = "oc.env" in raw or any(value in resolved for value in values)
            return Reference(resolved, raw) if held else resolved
        if isinstance(resolved, dict) and isinstance(raw, dict):
            return {key: walk(value, raw.get(key)) for key, value in resolved.items()}
        if isinstance(resolved, list) and isinstance(raw, list):
            return [walk(one, other) for one, other in zip(resolved, raw, strict=True)]
        if is_dataclass(resolved) and isinstance(raw, dict):
            for each in fields(resolved):
                setattr(resolved, each.name, walk(getattr(resolved, each.name), raw.get(each.name)))
        return resolved

    return walk(config, raw)


def check_no_credentials(values: Mapping[str, Any]) -> None:
    """Refuse a URI that holds credentials, which would reach files and logs.

    Args:
        values: by key; mappings, lists and sections are looked into.

    Raises `ConfigError` naming the key, without the URI.
    """
    for key, value in values.items():
        if isinstance(value, str):
            _check_uri(key, value)
        elif isinstance(value, Mapping):
            check_no_credentials({f"{key}.{name}": each for name, each in value.items()})
        elif isinstance(value, list):
            check_no_credentials({f"{key}[{place}]": each for place, each in enumerate(value)})
        elif is_dataclass(value) and not isinstance(value, type):
            check_no_credentials({f"{key}.{each.name}": getattr(value, each.name) for each in fields(value)})


def _check_uri(key: str, uri: str) -> None:
    if "://" not in uri:
        return
    try:
        parts = urlsplit(uri)
    except ValueError:
        return
    asked = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secret = next((name for name in asked if any(word in name.lower() for word in _SECRET_FIELDS)), None)
    # Azure writes CONTAINER@ACCOUNT, HDFS USER@HOST.
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or parts.scheme in ("s3", "gs", "gcs", "http", "https")):
        secret = "a user or key before @"
    if secret:
        raise ConfigError(
            f"{key}={parts.scheme}://...: holds credentials ({secret}), which would be written into the run folder; "
            "leave them out of the URI and give them in the environment (such as AWS_ACCESS_KEY_ID)"
        )
