"""The group of the learners: Ray Train's workers, each a rank (`actors.distill.learner`), from start to end."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.distill.learner import LearnerTask, train_loop
from actors.runtime.cluster import actor_options
from actors.runtime.remote import ActorLost, one_line

HEALTH_VARIABLE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
SILENCE = 60.0
"""Seconds for which a learner's process may not answer Ray Train, at most `learner.timeout`; then it is replaced."""


def train(task: LearnerTask, controlled_by: Callable[[Any], None] = lambda controller: None) -> None:
    """Run the worker group to the end of training. Raises `TrainingFailedError` when restarts are used up, and
    `ActorLost` when Ray Train's controller dies. `controlled_by`: called with Ray Train's controller when it has
    started."""
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from actors.runtime.loopback import INTERFACE, LoopbackConfig, is_local

    learner = task.config.learner
    controllers = []

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays with the command line: Ray Train's handler outlives the training and swallows it."""
            controllers.append(controller)
            controlled_by(controller)

    # Ray's own annotations name the classes of Train v1; at run time these are v2's, which know the runtime_env.
    make_run_config: Any = ray.train.RunConfig

    options = actor_options(
        role="learner",
        num_cpus=learner.num_cpus,
        num_gpus=learner.num_gpus,
        threads=learner.threads,
        overlapped=task.config.sync.max_staleness > 0,
        keep_memory=True,
    )
    local = is_local()
    if local:
        options["runtime_env"]["env_vars"] |= INTERFACE
    resources = {"CPU": learner.num_cpus} | ({"GPU": learner.num_gpus} if learner.num_gpus else {})
    trainer = Trainer(
        train_loop,
        train_loop_config={"task": task},
        torch_config=(LoopbackConfig if local else TorchConfig)(
            backend="nccl" if learner.num_gpus else "gloo", timeout_s=max(1, math.ceil(learner.timeout))
        ),
        scaling_config=ScalingConfig(
            num_workers=learner.num_workers, use_gpu=learner.num_gpus > 0, resources_per_worker=resources
        ),
        run_config=make_run_config(
            name=task.storage.name,
            storage_path=task.storage.path,
            failure_config=FailureConfig(max_failures=learner.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=learner.keep),
            worker_runtime_env=options["runtime_env"],
        ),
    )
    with _health_checks(min(learner.timeout, SILENCE)):
        try:
            trainer.fit()
        except ray.exceptions.RayActorError as error:
            # What happens to learners comes as an error of Ray Train's own.
            raise ActorLost(f"Ray Train's controller died ({one_line(error)}); go on with --resume") from error
        finally:
            # It would live as long as its trainer, which is in a cycle of references: a process for each training.
            for controller in controllers:
                ray.kill(controller)


@contextmanager
def _health_checks(limit: float) -> Iterator[None]:
    """Let Ray Train replace a worker that does not answer for `limit` seconds, and not for ten minutes as by default.
    Ray Train takes it from the environment; what the user has set there counts."""
    given = HEALTH_VARIABLE in os.environ
    os.environ.setdefault(HEALTH_VARIABLE, f"{limit:g}")
    try:
        yield
    finally:
        if not given:
            del os.environ[HEALTH_VARIABLE]
