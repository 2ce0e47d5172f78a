"""A model is loaded once, and proved to compute what a run assumes, before hours go into stage 1."""

from __future__ import annotations

import ray

from raft_ray.config import Config


def try_model(config: Config, folder: str) -> None:
    """Load the student's model somewhere on the cluster and let it go. Raises `ModelError` as a learner would, or
    `ray.exceptions.RayError` where it cannot be loaded within `learner.timeout`."""
    ray.get(_load.options(num_cpus=1).remote(config, folder), timeout=config.learner.timeout)


@ray.remote(max_calls=1)
def _load(config: Config, folder: str) -> None:
    """In a process that ends with it, and gives the memory back."""
    from actors.distill.learner import load_student

    load_student(config, folder)
