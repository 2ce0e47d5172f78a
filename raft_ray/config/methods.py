"""The training of one method: its batches, steps, rollout actors, weight sync and λ fit together."""

from __future__ import annotations

from raft_ray.config import Balance, Config, Dtype, Method, RolloutConfig, SyncBackend
from raft_ray.config.ranges import check_fits
from raft_ray.errors import ConfigError


def distils(config: Config) -> bool:
    """The method has rollouts and a teacher."""
    distill = config.distill
    switched_off = distill.balance is Balance.fixed and distill.fixed_lambda == 0
    return distill.method in (Method.opd, Method.raft) and not switched_off


def check_training(config: Config, where: str) -> None:
    """Refuse a method that cannot be trained as its keys say; `where` opens the message of a baseline. Raises
    `ConfigError`."""
    learner, rollout, distill = config.learner, config.rollout, config.distill
    if learner.global_batch_size % learner.num_workers:
        rows, ranks = learner.global_batch_size, learner.num_workers
        raise ConfigError(
            f"{where}learner.global_batch_size={rows}: not divisible by learner.num_workers={ranks}; "
            f"{rows + ranks - rows % ranks} is"
        )
    if learner.zero_stage == 0 and config.model.dtype is not Dtype.float32:
        raise ConfigError(
            f"{where}learner.zero_stage=0: would add up the gradients of a {config.model.dtype.value} model in half "
            "precision; set learner.zero_stage=1, or model.dtype=float32"
        )
    if learner.max_steps is not None and learner.warmup_steps >= learner.max_steps:
        raise ConfigError(
            f"{where}learner.warmup_steps={learner.warmup_steps}: the warm-up would never end within "
            f"learner.max_steps={learner.max_steps}; lower it"
        )
    if not distils(config):
        return
    if rollout.tensor_parallel > 1 and rollout.num_gpus < rollout.tensor_parallel:
        raise ConfigError(
            f"{where}rollout.tensor_parallel={rollout.tensor_parallel}: needs as many GPUs an actor; "
            f"set rollout.num_gpus={rollout.tensor_parallel}"
        )
    _check_elastic(rollout, where)
    if rollout.chunk_rows is not None and rollout.chunk_rows > learner.global_batch_size:
        raise ConfigError(
            f"{where}rollout.chunk_rows={rollout.chunk_rows}: a step has no more than "
            f"learner.global_batch_size={learner.global_batch_size} rows; lower it"
        )
    _check_sync(config, where)
    check_fits(config, "rollout.max_new_tokens", rollout.max_new_tokens, where)
    capped = distill.max_lambda is not None and distill.max_lambda < distill.fixed_lambda
    if distill.balance is Balance.fixed and capped:
        raise ConfigError(
            f"{where}distill.max_lambda={distill.max_lambda}: below distill.fixed_lambda={distill.fixed_lambda}, "
            "which it would replace; raise or unset it"
        )


def _check_elastic(rollout: RolloutConfig, where: str) -> None:
    least, most = rollout.min_actors, rollout.max_actors
    if (least is None) != (most is None):
        missing, given = ("min_actors", "max_actors") if least is None else ("max_actors", "min_actors")
        raise ConfigError(f"{where}rollout.{missing} is missing: rollout.{given} is set, and each needs the other")
    if least is not None and most is not None and not least <= rollout.actors <= most:
        raise ConfigError(
            f"{where}rollout.actors={rollout.actors}: must lie between rollout.min_actors={least} and "
            f"rollout.max_actors={most}"
        )


def _check_sync(config: Config, where: str) -> None:
    """The GPUs that `sync.backend` needs: NCCL refuses two members on one GPU, IPC works on one GPU only."""
    backend = config.sync.backend
    if config.sync.in_flight and (config.sync.max_staleness == 0 or backend is not SyncBackend.object_store):
        raise ConfigError(
            f"{where}sync.in_flight=true: needs sync.max_staleness of 1 or more and sync.backend=object_store, "
            f"not {config.sync.max_staleness} and {backend}"
        )
    if backend is SyncBackend.object_store:
        return
    gpus = {"learner.num_gpus": config.learner.num_gpus, "rollout.num_gpus": config.rollout.num_gpus}
    for key, value in gpus.items():
        if value == 0:
            raise ConfigError(
                f"{where}sync.backend={backend}: needs GPUs, but {key}=0; give the role GPUs, "
                "or set sync.backend=object_store"
            )
        if backend is SyncBackend.nccl and value < 1:
            raise ConfigError(
                f"{where}sync.backend=nccl: {key}={value} is a shared GPU, and NCCL needs one of its own for each "
                f"member; set {key}=1, or sync.backend=ipc"
            )
    shared = sum(gpus.values())
    if backend is SyncBackend.ipc and shared > 1:
        raise ConfigError(
            f"{where}sync.backend=ipc: learner.num_gpus + rollout.num_gpus={shared:g} do not fit on one GPU, which "
            "engine and learner must share; lower them, or set sync.backend=nccl"
        )
