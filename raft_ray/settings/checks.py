"""Refuses a config that cannot work, before anything starts: ranges, contradictions, the run folder.

Every error is one line that names the key and the fix. It knows nothing about the contents of data and models
(`raft_ray.preflight` reads those) nor about the cluster: `required_resources` says what a run asks of it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raft_ray.config import Balance, Config, Method, RolloutConfig, SyncBackend
from raft_ray.errors import ConfigError
from raft_ray.settings import reading

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
    "learner.workers": _FROM_ONE,
    "learner.zero_stage": ("0, 1, 2 or 3", lambda value: 0 <= value <= 3),
    "learner.batch": _FROM_ONE,
    "learner.lr": _POSITIVE,
    "learner.epochs": _FROM_ONE,
    "learner.max_steps": _FROM_ONE,
    "learner.weight_decay": _NOT_NEGATIVE,
    "learner.beta1": _DECAY,
    "learner.beta2": _DECAY,
    "learner.grad_clip": _POSITIVE,
    "learner.warmup_steps": _NOT_NEGATIVE,
    "learner.tokens": _FROM_ONE,
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
    "eval.open_rows": _FROM_ONE,
    "eval.open_max_new_tokens": _FROM_ONE,
    "eval.temperature": _NOT_NEGATIVE,
    "eval.samples": _NOT_NEGATIVE,
    "compare.sparsity": _SHARE,
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

STORAGE_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Of the file systems that pyarrow opens by URI."""

# Sections that belong to the run as a whole, so that all its methods are compared on the same ground.
SHARED = ("run", "model", "data", "refine", "eval")

# A checkpoint holds the place in this order of rows, and weights of this model: they cannot change on the way.
_FIXED_ON_RESUME = (
    "run.seed",
    "run.storage",
    "model.path",
    "model.dtype",
    "data.train",
    "data.limit",
    "learner.batch",
    "distill.method",
    "distill.target",
)


def check(config: Config, *, trains: bool = True) -> None:
    """Refuse values out of range and keys that contradict each other. Raises `ConfigError`.

    Args:
        trains: the training set is needed; an evaluation goes without.
    """
    _check_ranges(config, "")
    _check_data(config, trains)
    _check_storage(config)
    _check_refine(config)
    _check_eval(config)
    _check_training(config, "")
    _check_baselines(config)
    _check_local(config)


def check_run_dir(config: Config) -> None:
    """Refuse a run folder that is in use, cannot be written, or has no run to resume, and a local folder of
    checkpoints that cannot be written. Raises `ConfigError`."""
    folder = Path(config.run.dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.dir={folder}: a file of that name is in the way; choose another with --run-dir")
    if config.run.resume:
        _check_same_run(config, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"run.dir={folder}: the folder is not empty; go on with the run there with --resume, "
            "or choose another folder with --run-dir"
        )
    _check_writable(folder, f"run.dir={folder}", "choose another folder with --run-dir")
    if config.run.storage and (local := local_storage(config.run.storage)):
        _check_writable(local, f"run.storage={config.run.storage}", "choose another folder, or a URI")


def local_storage(storage: str) -> Path | None:
    """The folder that a `run.storage` names on this machine; none for a remote one."""
    uri = urlsplit(storage)
    if uri.scheme == "file":
        return Path(unquote(uri.path))
    return None if uri.scheme else Path(storage).expanduser()


def required_resources(config: Config) -> tuple[float, float]:
    """CPUs and GPUs that stage 2 holds at the same time: the most that the main method or a baseline asks for.

    Distillation runs its rollout actors, teachers, learners and one pipeline actor side by side; `sft` and `sdft`
    run learners only.
    """
    needs = [_resources(config), *(_resources(reading.for_method(config, name)) for name in config.run.baselines)]
    return max(cpus for cpus, _ in needs), max(gpus for _, gpus in needs)


def distils(config: Config) -> bool:
    """The method has rollouts and a teacher."""
    distill = config.distill
    switched_off = distill.balance is Balance.fixed and distill.fixed_lambda == 0
    return distill.method in (Method.opd, Method.raft) and not switched_off


def _resources(config: Config) -> tuple[float, float]:
    cpus = config.learner.workers * config.learner.num_cpus
    gpus = config.learner.workers * config.learner.num_gpus
    if distils(config):
        cpus += config.rollout.actors * config.rollout.num_cpus + config.teacher.actors * config.teacher.num_cpus + 1
        gpus += config.rollout.actors * config.rollout.num_gpus + config.teacher.actors * config.teacher.num_gpus
    return cpus, gpus


def _check_ranges(config: Config, where: str) -> None:
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


def _check_data(config: Config, trains: bool) -> None:
    data = config.data
    if trains and data.train in (reading.MISSING, ""):
        raise ConfigError(
            "data.train is missing: set data.train=FILE (.jsonl or .parquet), a Hugging Face dataset name, "
            "or domain:chemistry"
        )
    if data.test == data.train and Path(data.train).suffix in (".jsonl", ".parquet"):
        raise ConfigError(f"data.test={data.test}: these are the training rows; name a file with other questions")
    if data.prompt_field == data.answer_field:
        raise ConfigError(f"data.answer_field={data.answer_field}: data.prompt_field is the same; name another")
    if not config.run.dir:
        raise ConfigError("run.dir is empty; name a folder for the run")


def _check_storage(config: Config) -> None:
    storage = config.run.storage
    if storage is None:
        return
    if not storage:
        raise ConfigError("run.storage is empty; name a folder or URI, or set run.storage=null for the run folder")
    uri = urlsplit(storage)
    if not uri.scheme:
        return
    if uri.scheme not in STORAGE_SCHEMES:
        hint = reading.nearest(uri.scheme, list(STORAGE_SCHEMES))
        raise ConfigError(
            f"run.storage={storage}: there is no file system {uri.scheme}{hint} (known: {', '.join(STORAGE_SCHEMES)})"
        )
    if uri.scheme == "file" and (uri.netloc or not uri.path.startswith("/")):
        raise ConfigError(f"run.storage={storage}: a local URI has three slashes: file:///FOLDER")
    if uri.scheme not in ("file", "hdfs", "viewfs") and not uri.netloc:
        raise ConfigError(f"run.storage={storage}: names no bucket; write {uri.scheme}://BUCKET/FOLDER")


def _check_refine(config: Config) -> None:
    from raft_ray.refine import check_refine

    refine = config.refine
    if refine.max_workers is not None and refine.max_workers < refine.workers:
        raise ConfigError(
            f"refine.max_workers={refine.max_workers}: below refine.workers={refine.workers}; raise it, or leave it out"
        )
    if refine.enabled:
        check_refine(config)
        _check_fits(config, "refine.max_new_tokens", refine.max_new_tokens)


def _check_eval(config: Config) -> None:
    from raft_ray.evaluate.judged import check_judges

    if not config.eval.enabled:
        return
    if config.data.test is not None:
        _check_fits(config, "eval.domain_max_new_tokens", config.eval.domain_max_new_tokens)
    if config.eval.ifeval_rows != 0:
        _check_fits(config, "eval.ifeval_max_new_tokens", config.eval.ifeval_max_new_tokens)
    _check_fits(config, "eval.general_max_new_tokens", config.eval.general_max_new_tokens)
    check_judges(config)
    if config.eval.open is not None:
        _check_fits(config, "eval.open_max_new_tokens", config.eval.open_max_new_tokens)
    shots = config.eval.mmlu_shots
    if config.eval.mmlu is not None and (not shots or min(shots) < 0 or len(set(shots)) < len(shots)):
        raise ConfigError(f"eval.mmlu_shots={shots}: must be different numbers from 0 on, such as [0, 5]")


def _check_training(config: Config, where: str) -> None:
    """What one method's training needs; `where` opens the message of a baseline."""
    learner, rollout, distill = config.learner, config.rollout, config.distill
    if learner.batch % learner.workers:
        raise ConfigError(
            f"{where}learner.batch={learner.batch}: not divisible by learner.workers={learner.workers}; "
            f"{learner.batch + learner.workers - learner.batch % learner.workers} is"
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
    if rollout.chunk_rows is not None and rollout.chunk_rows > learner.batch:
        raise ConfigError(
            f"{where}rollout.chunk_rows={rollout.chunk_rows}: a step has no more than learner.batch={learner.batch} "
            "rows; lower it"
        )
    _check_sync(config, where)
    _check_fits(config, "rollout.max_new_tokens", rollout.max_new_tokens, where)
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


def _check_baselines(config: Config) -> None:
    methods = [method.value for method in Method]
    for name in config.run.baselines:
        if name not in methods:
            hint = reading.nearest(name, methods)
            raise ConfigError(f"run.baselines: there is no method {name}{hint} (methods: {', '.join(methods)})")
    if twice := _repeated(config.run.baselines):
        raise ConfigError(f"run.baselines: {twice} is named twice")
    if config.distill.method.value in config.run.baselines:
        raise ConfigError(f"run.baselines: {config.distill.method.value} is distill.method already; leave it out")
    for name, overrides in config.run.overrides.items():
        if name not in methods:
            hint = reading.nearest(name, methods)
            raise ConfigError(f"run.overrides.{name}: there is no such method{hint} (methods: {', '.join(methods)})")
        if name == config.distill.method.value:
            raise ConfigError(f"run.overrides.{name}: is distill.method, whose keys are set directly; leave it out")
        if not isinstance(overrides, dict):
            raise ConfigError(f"run.overrides.{name}: must hold sections, such as {{learner: {{lr: 1e-4}}}}")
        for section, values in overrides.items():
            if section in SHARED or (section == "distill" and "method" in (values or {})):
                key = "distill.method" if section == "distill" else section
                raise ConfigError(f"run.overrides.{name}.{key}: cannot differ; all methods of a run share it")
        # Keys and types of a method that this run does not train are checked too.
        reading.for_method(config, name)
    for name in config.run.baselines:
        where = f"run.overrides.{name}: "
        baseline = reading.for_method(config, name)
        _check_ranges(baseline, where)
        _check_training(baseline, f"baseline {name}: ")


def _check_local(config: Config) -> None:
    cpus = config.run.local_cpus
    if cpus is None:
        return
    if config.run.ray_address is not None:
        raise ConfigError("run.local_cpus is for a local Ray, run.ray_address joins a cluster; leave one of them out")
    needed, _ = required_resources(config)
    if needed > cpus:
        raise ConfigError(
            f"run.local_cpus={cpus}: the roles ask for {needed:g} CPUs; leave it out, or lower rollout.actors, "
            "teacher.actors or learner.workers"
        )


def _check_fits(config: Config, key: str, tokens: int, where: str = "") -> None:
    context = config.model.context
    if context is not None and tokens >= context:
        raise ConfigError(f"{where}{key}={tokens}: leaves no room for a prompt in model.context={context}; lower it")


def _check_same_run(config: Config, folder: Path) -> None:
    saved_path = folder / "config.yaml"
    if not saved_path.is_file():
        raise ConfigError(f"run.dir={folder}: there is no run to resume (no config.yaml there); leave out --resume")
    saved, now = reading.flatten(reading.load_saved(saved_path)), reading.flatten(config)
    for key in _FIXED_ON_RESUME:
        if saved[key] != now[key]:
            raise ConfigError(
                f"{key}={now[key]}: the run in {folder} was started with {saved[key]}; resume with that, "
                "or start a new run with --run-dir"
            )


def _check_writable(folder: Path, what: str, fix: str) -> None:
    """Refuse a folder, not yet made perhaps, in which no file can be made; leaves nothing behind."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ConfigError(f"{what}: cannot write there ({error.strerror}); {fix}") from error


def _repeated(names: list[str]) -> str | None:
    return next((name for position, name in enumerate(names) if name in names[:position]), None)
