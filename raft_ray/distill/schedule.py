"""The learning rate of a step."""

from __future__ import annotations

import math

from raft_ray.config import LearnerConfig, Schedule


def learning_rate(config: LearnerConfig, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`: linear warm-up, then the schedule down to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.schedule is Schedule.constant:
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule is Schedule.linear:
        return config.lr * (1 - done)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
