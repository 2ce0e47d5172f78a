"""Where a model comes from, and everything of it that student, teacher, engine and evaluation must agree on.

`loading` resolves, checks and loads it; `prompts` and `chat` make the token ids that a row becomes; `head` and
`likelihood` compute what it says of them.
"""

from raft_ray.models.builtin import EMBEDDED, TINY
from raft_ray.models.loading import (
    check_adapter,
    check_rollouts,
    check_weights,
    checkpoint_tensors,
    empty_model,
    load_chat,
    load_model,
    load_tokenizer,
    model_context,
    model_identity,
    resolve,
    vocabulary_difference,
    vocabulary_size,
)

__all__ = [
    "EMBEDDED",
    "TINY",
    "check_adapter",
    "check_rollouts",
    "check_weights",
    "checkpoint_tensors",
    "empty_model",
    "load_chat",
    "load_model",
    "load_tokenizer",
    "model_context",
    "model_identity",
    "resolve",
    "vocabulary_difference",
    "vocabulary_size",
]
