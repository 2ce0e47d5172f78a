"""The range of every number in a config, and room for prompts in the model's context."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from raft_ray.config import Config, reading
from raft_ray.errors import ConfigError

_Range = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Range = ("greater than 0", lambda value: value > 0)
_NOT_NEGATIVE: _Range = ("at least 0", lambda value: value >= 0)
_FROM_ONE: _Range = ("at least 1", lambda value: value >= 1)
_SHARE: _Range = ("between 0 and 1", lambda value: 0 <= value <= 1)
_POSITIVE_SHARE: _Range = ("greater than 0 and at most 1", lambda value: 0 < value <= 1)
_DECAY: _Range = ("at least 0 and less than 1", lambda value: 0 <= value < 1)
# A fraction of a GPU shares one; more than one must be whole: Ray grants no other.
_UNITS: _Range = ("at least 0, and whole if above 1", lambda value: value >= 0 and (value < 1 or value == int(value)))

RANGES: dict[str, _Range] = {
    "run.seed": _NOT_NEGATIVE,
    "run.local_cpus": _FROM_ONE,
    "model.context": _FROM_ONE,
    "data.max_prompt": _FROM_ONE,
    "data.max_answer": _FROM_ONE,
    "data.limit": _FROM_ONE,
    "refine.tau": _SHARE,
    "refine.candidates": _FROM_ONE,
    "refine.rounds": _FROM_ONE,
    "refine.stop_score": _SHARE,
    "refine.attempts": _FROM_ONE,
    "refine.temperature": _NOT_NEGATIVE,
    "refine.fuse_temperature": _NOT_NEGATIVE,
    "refine.max_new_tokens": _FROM_ONE,
    "refine.judge_max_new_tokens": _FROM_ONE,
    "refine.guards.repetition": _SHARE,
    "refine.guards.shortest": _SHARE,
    "refine.guards.longest": _POSITIVE,
    "refine.guards.language": _SHARE,
    "refine.guards.script": _SHARE,
    "refine.actors": _FROM_ONE,
    "refine.workers": _FROM_ONE,
    "refine.max_workers": _FROM_ONE,
    "refine.batch": _FROM_ONE,
    "rollout.actors": _FROM_ONE,
    "rollout.min_actors": _FROM_ONE,
    "rollout.max_actors": _FROM_ONE,
    "rollout.chunk_rows": _FROM_ONE,
    "rollout.max_new_tokens": _FROM_ONE,
    "rollout.temperature": _NOT_NEGATIVE,
    "rollout.top_p": _POSITIVE_SHARE,
    "rollout.num_cpus": _UNITS,
    "rollout.num_gpus": _UNITS,
    "rollout.threads": _FROM_ONE,
    "rollout.tensor_parallel": _FROM_ONE,
    "rollout.kv_cache_gib": _POSITIVE,
    "rollout.gpu_memory_utilization": _POSITIVE_SHARE,
    "rollout.timeout": _POSITIVE,
    "rollout.max_restarts": _NOT_NEGATIVE,
    "rollout.tries": _FROM_ONE,
    "teacher.actors": _FROM_ONE,
    "teacher.tokens": _FROM_ONE,
    "teacher.num_cpus": _UNITS,
    "teacher.num_gpus": _UNITS,
    "teacher.threads": _FROM_ONE,
    "teacher.timeout": _POSITIVE,
    "teacher.max_restarts": _NOT_NEGATIVE,
    "learner.num_workers": _FROM_ONE,
    "learner.zero_stage": ("0, 1, 2 or 3", lambda value: 0 <= value <= 3),
    "learner.global_batch_size": _FROM_ONE,
    "learner.lr": _POSITIVE,
    "learner.epochs": _FROM_ONE,
    "learner.max_steps": _FROM_ONE,
    "learner.weight_decay": _NOT_NEGATIVE,
    "learner.beta1": _DECAY,
    "learner.beta2": _DECAY,
    "learner.grad_clip": _POSITIVE,
    "learner.warmup_steps": _NOT_NEGATIVE,
    "learner.max_tokens_per_microbatch": _FROM_ONE,
    "learner.checkpoint_every": _NOT_NEGATIVE,
    "learner.keep": _FROM_ONE,
    "learner.max_restarts": _NOT_NEGATIVE,
    "learner.num_cpus": _UNITS,
    "learner.num_gpus": _UNITS,
    "learner.threads": _FROM_ONE,
    "learner.timeout": _POSITIVE,
    "distill.temperature": _POSITIVE,
    "distill.top_k": _FROM_ONE,
    "distill.ema_beta": _DECAY,
    "distill.fixed_lambda": _NOT_NEGATIVE,
    "distill.max_lambda": _POSITIVE,
    "sync.max_staleness": _NOT_NEGATIVE,
    "sync.timeout": _POSITIVE,
    "eval.domain_rows": _FROM_ONE,
    "eval.domain_max_new_tokens": _FROM_ONE,
    "eval.ifeval_rows": _NOT_NEGATIVE,
    "eval.ifeval_max_new_tokens": _FROM_ONE,
    "eval.mmlu_rows": _FROM_ONE,
    "eval.general_rows": _FROM_ONE,
    "eval.general_max_new_tokens": _FROM_ONE,
    "eval.judge_max_new_tokens": _FROM_ONE,
    "eval.open_rows": _FROM_ONE,
    "eval.open_max_new_tokens": _FROM_ONE,
    "eval.temperature": _NOT_NEGATIVE,
    "eval.samples": _NOT_NEGATIVE,
    "compare.sparsity": _SHARE,
    "compare.grid_seeds": _FROM_ONE,
    "compare.validation": ("greater than 0 and less than 1", lambda value: 0 < value < 1),
}
"""Dotted key -> the range of its number, in words and as a test. A key that is none is not tested."""

REFINE_MODEL_RANGES: dict[str, _Range] = {
    "actors": _FROM_ONE,
    "num_cpus": _UNITS,
    "num_gpus": _UNITS,
    "tensor_parallel": _FROM_ONE,
    "context": _FROM_ONE,
    "concurrency": _FROM_ONE,
    "timeout": _POSITIVE,
    "retries": _NOT_NEGATIVE,
    "input_cost": _NOT_NEGATIVE,
    "output_cost": _NOT_NEGATIVE,
}
"""The same for the keys of each of `refine.models`."""


def check_ranges(config: Config, where: str) -> None:
    """Refuse a number out of its range; `where` opens the message. Raises `ConfigError`."""
    values = reading.flatten(config)
    ranges = dict(RANGES)
    for name, model in config.refine.models.items():
        for inner, limits in REFINE_MODEL_RANGES.items():
            ranges[f"refine.models.{name}.{inner}"] = limits
            values[f"refine.models.{name}.{inner}"] = getattr(model, inner)
    for key, (words, holds) in ranges.items():
        value = values[key]
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise ConfigError(f"{where}{key}={value}: must be {words}")


def check_fits(config: Config, key: str, tokens: int, where: str = "") -> None:
    """Refuse to generate so many tokens (of `key`) that no prompt fits before them. Raises `ConfigError`."""
    context = config.model.context
    if context is not None and tokens >= context:
        raise ConfigError(f"{where}{key}={tokens}: leaves no room for a prompt in model.context={context}; lower it")
