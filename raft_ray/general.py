"""General prompts, for response length and drift; PLACEHOLDER replaced by helper."""

from __future__ import annotations


def general_prompts() -> list[str]:
    return ["hello world"]
