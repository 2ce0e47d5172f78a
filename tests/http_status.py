"""Servers of the tests: a port for one, and what it answers to a bearer of a token, or of none."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _get(url: str, token: str | None) -> urllib.request.Request:
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return request


def status_of(url: str, token: str | None) -> int:
    """The HTTP status of a GET."""
    try:
        with urllib.request.urlopen(_get(url, token), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def read_json(url: str, token: str | None) -> Any:
    """The JSON that a GET answers with. Raises `HTTPError` for any status but a success."""
    with urllib.request.urlopen(_get(url, token), timeout=10) as answer:
        return json.load(answer)
