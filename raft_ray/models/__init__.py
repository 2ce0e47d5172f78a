"""Where a model comes from, and everything of it that student, teacher, engine and evaluation must agree on.

`sources` names it; `loading` resolves, checks and loads it; `prompts` and `chat` make the token ids that a row becomes;
`head` and `likelihood` compute what it says of them.
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
    resolve,
    swapped_layers,
    vocabulary_difference,
    vocabulary_size,
)
from raft_ray.models.sources import base_folder, given, model_identity, settled, source, split

__all__ = [
    "EMBEDDED",
    "TINY",
    "base_folder",
    "check_adapter",
    "check_rollouts",
    "check_weights",
    "checkpoint_tensors",
    "empty_model",
    "given",
    "load_chat",
    "load_model",
    "load_tokenizer",
    "model_context",
    "model_identity",
    "resolve",
    "settled",
    "source",
    "split",
    "swapped_layers",
    "vocabulary_difference",
    "vocabulary_size",
]
