"""The prompt files of stage 1: what the models of each role are asked. A run records them with their hashes.

Knows nothing about rows or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft_ray.config import RefineConfig
from raft_ray.models.templates import fill, load_prompt, prompt_hash
from raft_ray.refine.judges import JUDGES
from raft_ray.refine.roles import NONE
from raft_ray.refine.schema import Message

REWRITE_FIELDS = ("prompt", "answer")
FUSE_FIELDS = ("prompt", "answer", "rewrite")
JUDGE_FIELDS = ("prompt", "answer", "candidate")


@dataclass(frozen=True)
class RefinePrompts:
    """Texts of the prompt files, fields unfilled."""

    rewrite: str
    fuse: str = ""
    """Empty without a fuser."""
    judge: str = ""
    """Empty where no judge is a model."""

    def hashes(self) -> dict[str, str]:
        """The hash of each text that is used."""
        texts = {"rewrite": self.rewrite, "fuse": self.fuse, "judge": self.judge}
        return {name: prompt_hash(text) for name, text in texts.items() if text}


def load_prompts(refine: RefineConfig) -> RefinePrompts:
    """The prompt files that the roles of `refine` need. Raises `ConfigError` naming the key of one that is amiss."""
    fuses = refine.fuser != NONE
    model_judges = fuses and any(name not in JUDGES for name in refine.judges)
    return RefinePrompts(
        load_prompt(refine.rewrite_prompt, REWRITE_FIELDS, "refine.rewrite_prompt"),
        load_prompt(refine.fuse_prompt, FUSE_FIELDS, "refine.fuse_prompt") if fuses else "",
        load_prompt(refine.judge_prompt, JUDGE_FIELDS, "refine.judge_prompt") if model_judges else "",
    )


def rewrite_chat(template: str, messages: Sequence[Message], prompt: str, answer: str) -> list[Message]:
    """What the rewriter reads of a row (Eq. 1): its chat, question and gold answer in the prompt file's text."""
    return asking(messages, fill(template, prompt=prompt, answer=answer))


def asking(messages: Sequence[Message], content: str) -> list[Message]:
    """A row's chat with `content` in the place of its last message."""
    return [*messages[:-1], {"role": "user", "content": content}]
