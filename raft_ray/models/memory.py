"""The least memory that a run's roles take on one machine without GPUs, so that what cannot fit is told at once.

Counts what is certain: weights, gradients, optimizer, key-value cache, the weights on their way, and what a process
takes before it has a model. Activations come on top. Knows nothing about Ray or about which machine it is.
"""

from __future__ import annotations

from raft_ray.config import Config, Dtype
from raft_ray.errors import ConfigError

_GIB = 2**30
_PROCESS = 0.4
"""GiB of a process with torch and its libraries."""


def least_gib(config: Config, parameters: int) -> dict[str, float]:
    """GiB by role, all its processes together; roles on GPUs are left out. `parameters`: of the model."""
    billions = parameters / _GIB
    width = 4 if config.model.dtype is Dtype.float32 else 2
    learner, rollout, teacher = config.learner, config.rollout, config.teacher
    ranks, stage = learner.num_workers, learner.zero_stage
    # Weights, float32 gradients, Adam's two moments with the float32 masters of half-precision weights; each is sharded
    # from a stage on.
    shared = [(width, 3), (4, 2), (8 + (4 if width == 2 else 0), 1)]
    if learner.lora.rank:
        # All else is of the adapter, which is small.
        shared = shared[:1]
    per_rank = sum(size / (ranks if stage >= since else 1) for size, since in shared)
    found = {}
    if not learner.num_gpus:
        found["learner"] = ranks * (billions * per_rank + _PROCESS)
    if config.loads_weights and not rollout.num_gpus:
        found["rollout"] = rollout.actors * (billions * width + rollout.kv_cache_gib + _PROCESS)
    if config.uses_teachers and not teacher.num_gpus:
        found["teacher"] = teacher.actors * (billions * width + _PROCESS)
    if config.loads_weights:
        found["object store"] = billions * width
    return found


def check_memory(config: Config, parameters: int, machine: int) -> None:
    """Refuse a run whose roles cannot fit into `machine` bytes of memory. Raises `ConfigError`."""
    roles = least_gib(config, parameters)
    needed, there = sum(roles.values()), machine / _GIB
    if needed > there:
        parts = ", ".join(f"{role} {gib:.1f}" for role, gib in roles.items())
        raise ConfigError(
            f"model.path={config.model.path}: {parameters / 1e9:.2g} billion parameters need at least {needed:.1f} GiB "
            f"of memory here ({parts}), this machine has {there:.1f}; lower learner.num_workers, rollout.actors, "
            "teacher.actors or rollout.kv_cache_gib, set model.dtype=bfloat16, or take a smaller model or a larger "
            "machine"
        )
