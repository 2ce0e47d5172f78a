"""What a server answers to a bearer of a token, or of none."""

from __future__ import annotations

import urllib.error
import urllib.request


def status_of(url: str, token: str | None) -> int:
    """The HTTP status of a GET."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
