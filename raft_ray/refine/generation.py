"""What stage 1 requests of a model, and what it gets back; whoever generates (an engine, an endpoint) keeps to this.

Knows nothing about prompts, judges or who the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = dict[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Request:
    """One text that is wanted."""

    chat: list[Message]
    """What is to be answered; an empty one asks an engine for a user's first turn."""
    sample_index: int = 0
    """Tells apart independent samples for the same chat: attempt, or round and candidate."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one `Request`."""

    text: str
    truncated: bool = False
    """The token limit ended it."""
    too_long: bool = False
    """The chat did not fit the model's context: nothing was generated."""
    failed: str | None = None
    """Why there is no text although all retries were used up; never kept in a cache."""
    input_tokens: int = 0
    output_tokens: int = 0


class Generate(Protocol):
    """A model: one text for each request, in order; the same for the same requests and seed, where the model can."""

    identity: str
    """Which model it is, weights and precision included, but no secrets: part of the key under which texts are kept."""

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Completion]:
        """`schema` is a JSON schema that the text must follow; a model that cannot promise it may ignore it."""
        ...
