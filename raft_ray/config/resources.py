"""CPUs and GPUs that a run asks for. Knows nothing about the cluster, which may have fewer."""

from __future__ import annotations

from raft_ray.config import Config, reading
from raft_ray.config.methods import distils
from raft_ray.errors import ConfigError


def required_resources(config: Config) -> tuple[float, float]:
    """CPUs and GPUs that stage 2 holds at the same time: the most that the main method or a baseline asks for.

    Distillation runs its rollout actors, teachers, learners and one pipeline actor side by side; `sft` and `sdft`
    run learners only.
    """
    needs = [_resources(config), *(_resources(reading.for_method(config, name)) for name in config.run.baselines)]
    return max(cpus for cpus, _ in needs), max(gpus for _, gpus in needs)


def check_local(config: Config) -> None:
    """Refuse a local Ray (`run.local_cpus`) that is too small for the run. Raises `ConfigError`."""
    cpus = config.run.local_cpus
    if cpus is None:
        return
    if config.run.ray_address is not None:
        raise ConfigError("run.local_cpus is for a local Ray, run.ray_address joins a cluster; leave one of them out")
    needed, _ = required_resources(config)
    if needed > cpus:
        raise ConfigError(
            f"run.local_cpus={cpus}: the roles ask for {needed:g} CPUs; leave it out, or lower rollout.actors, "
            "teacher.actors or learner.num_workers"
        )


def _resources(config: Config) -> tuple[float, float]:
    cpus = config.learner.num_workers * config.learner.num_cpus
    gpus = config.learner.num_workers * config.learner.num_gpus
    if distils(config):
        cpus += config.rollout.actors * config.rollout.num_cpus + config.teacher.actors * config.teacher.num_cpus + 1
        gpus += config.rollout.actors * config.rollout.num_gpus + config.teacher.actors * config.teacher.num_gpus
    return cpus, gpus
