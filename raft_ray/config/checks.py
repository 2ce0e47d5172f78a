"""Refuses keys that contradict each other, before anything starts, and says what a run asks for.

Each group of rules yields a line for every rule that is broken, with key and fix; the first is raised. It looks at no
file: `raft_ray.checks` reads those that keys name.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from operator import attrgetter
from pathlib import Path
from urllib.parse import urlsplit

from raft_ray.config import (
    Balance,
    Config,
    DomainMetric,
    Dtype,
    Keep,
    Method,
    RehearsalKind,
    RolloutConfig,
    SyncBackend,
)
from raft_ray.config.adapter_checks import adapter_problems
from raft_ray.config.keys import nearest
from raft_ray.config.settings import MISSING, for_method, make
from raft_ray.errors import ConfigError

SHARED = ("run", "model", "data", "refine", "eval")
"""Sections that belong to the run as a whole, so that all its methods are compared on the same ground."""

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Of the file systems that pyarrow opens by URI."""


def check(config: Config, *, trains: bool = True) -> None:
    """Refuse values out of range and keys that contradict each other. Raises `ConfigError`. `trains`: the training set
    is needed; an evaluation goes without."""
    make(config, [])
    _refuse(_values(config, trains))
    _refuse(_lengths(config))
    _refuse(_evaluations(config))
    _refuse(_training(config))
    _refuse(_baselines(config))
    for name in dict.fromkeys([*config.run.overrides, *config.run.baselines]):
        # Keys and values of a method that this run does not train are looked at, too.
        made = for_method(config, name)
        if name in config.run.baselines:
            _refuse(_training(made), f"baseline {name}: ")
    _refuse(_local(config))


def required_resources(config: Config) -> tuple[float, float]:
    """CPUs and GPUs that stage 2 holds at the same time: the most that the main method or a baseline asks for.
    Distillation and rehearsal run rollout actors, teachers (`teacher.place=own`), learners and one pipeline actor side
    by side; `sft` and `sdft` alone run learners only, with `eval.every` rollout actors and the pipeline actor as
    well."""
    needs = [_resources(made) for made in (config, *(for_method(config, name) for name in config.run.baselines))]
    return max(cpus for cpus, _ in needs), max(gpus for _, gpus in needs)


def _resources(config: Config) -> tuple[float, float]:
    learner, rollout, teacher = config.learner, config.rollout, config.teacher
    cpus, gpus = learner.num_workers * learner.num_cpus, learner.num_workers * learner.num_gpus
    if config.uses_engines:
        cpus += rollout.actors * rollout.num_cpus + 1
        gpus += rollout.actors * rollout.num_gpus
    if config.uses_teachers:
        cpus += teacher.actors * teacher.num_cpus
        gpus += teacher.actors * teacher.num_gpus
    if config.keeps_answers:  # An engine writes prompts and answers before the learners start.
        cpus, gpus = max(cpus, rollout.num_cpus), max(gpus, rollout.num_gpus)
    return cpus, gpus


def _refuse(wrong: Iterator[str], where: str = "") -> None:
    """Raise `ConfigError` with the first message, if there is one; `where` opens it."""
    if message := next(wrong, None):
        raise ConfigError(f"{where}{message}")


def _values(config: Config, trains: bool) -> Iterator[str]:
    """What is wrong with keys of the run as a whole."""
    data, refine, shots = config.data, config.refine, config.eval.mmlu_shots
    try:
        date.fromisoformat(config.model.date or "2026-01-31")
    except ValueError:
        yield f"model.date={config.model.date}: takes a day such as 2026-01-31, or null for today"
    sources = data.train if isinstance(data.train, list) else [data.train]
    if trains and (not sources or MISSING in sources or "" in sources):
        yield (
            "data.train is missing: set data.train=FILE (.jsonl, .csv, .parquet ..), a Hugging Face dataset name, "
            "domain:chemistry, or a list of them"
        )
    if data.test and data.test in sources and Path(data.test).suffix:
        yield f"data.test={data.test}: these are the training rows; name a file with other questions"
    columns = data.columns
    if columns.prompt and columns.prompt == columns.answer:
        yield f"data.columns.answer={columns.answer}: data.columns.prompt is the same; name another"
    if not config.run.dir:
        yield "run.dir is empty; name a folder for the run"
    if config.run.storage is not None:
        yield from _storage(config.run.storage)
    if refine.max_workers is not None and refine.max_workers < refine.workers:
        yield (
            f"refine.max_workers={refine.max_workers}: below refine.workers={refine.workers}; raise it, or leave it out"
        )
    unfit = not shots or min(shots) < 0 or len(set(shots)) < len(shots)
    if config.eval.enabled and config.eval.mmlu is not None and unfit:
        yield f"eval.mmlu_shots={shots}: must be different numbers from 0 on, such as [0, 5]"


def _storage(storage: str) -> Iterator[str]:
    """Why `run.storage` is neither a folder nor a URI that can be opened."""
    uri, where = urlsplit(storage), f"run.storage={storage}"
    if not storage:
        yield "run.storage is empty; name a folder or URI, or set run.storage=null for the run folder"
    if uri.scheme and uri.scheme not in _SCHEMES:
        hint = nearest(uri.scheme, _SCHEMES)
        yield f"{where}: there is no file system {uri.scheme}{hint} (known: {', '.join(_SCHEMES)})"
    if uri.scheme == "file" and (uri.netloc or not uri.path.startswith("/")):
        yield f"{where}: a local URI has three slashes: file:///FOLDER"
    if uri.scheme not in ("", "file", "hdfs", "viewfs") and not uri.netloc:
        yield f"{where}: names no bucket; write {uri.scheme}://BUCKET/FOLDER"


def _lengths(config: Config) -> Iterator[str]:
    """Which of the numbers of tokens that stage 1 and the evaluation generate leave no room for a prompt."""
    evaluation, watched = config.eval, config.eval.every > 0
    used = {
        "refine.max_new_tokens": config.refine.enabled,
        "eval.domain_max_new_tokens": watched or (evaluation.enabled and config.data.test is not None),
        "eval.ifeval_max_new_tokens": (watched and evaluation.validation_ifeval_rows > 0)
        or (evaluation.enabled and evaluation.ifeval_rows != 0),
        "eval.general_max_new_tokens": watched or evaluation.enabled,
        # Without judges nobody scores open questions, which is refused as such.
        "eval.open_max_new_tokens": evaluation.enabled and evaluation.open is not None and evaluation.judges,
    }
    for key in used:
        if used[key]:
            yield from _no_room(config, key)


def _evaluations(config: Config) -> Iterator[str]:
    """Why evaluations while a method trains cannot be made, or what rests on them cannot be had without them."""
    asked, data = config.eval, config.data
    if not asked.every:
        needing = {
            "validation": asked.validation,
            "keep": asked.keep if asked.keep is Keep.best else None,
            "max_drift": asked.max_drift,
            "patience": asked.patience,
        }
        for key, value in needing.items():
            if value is not None:
                yield (
                    f"eval.{key}={value}: nothing is evaluated while a method trains; set eval.every to a number of "
                    f"steps, or leave eval.{key} out"
                )
        return
    if config.uses_given_trajectories:
        yield (
            f"eval.every={asked.every}: there are no engines to ask where trajectories are given (distill.off_policy, "
            "distill.rehearsal.kind=replay_kl); set eval.every=0"
        )
    if asked.max_drift is not None and asked.keep is Keep.last and asked.patience is None:
        yield f"eval.max_drift={asked.max_drift:g}: decides nothing; set eval.keep=best or eval.patience, or drop it"
    if asked.domain_metric not in (DomainMetric.auto, DomainMetric.contains, DomainMetric.exact):
        yield (
            f"eval.domain_metric={asked.domain_metric}: is not taken while a method trains (eval.every={asked.every}); "
            "set eval.domain_metric=contains or exact, or eval.every=0"
        )
    if (source := asked.validation) is not None:
        trained = data.train if isinstance(data.train, list) else [data.train]
        if source in trained and not source.startswith("domain:") and Path(source).suffix:
            yield f"eval.validation={source}: these are the training rows; name others, or none to hold some out"
        if source == data.test:
            yield (
                f"eval.validation={source}: these are the test questions (data.test), which must not choose a model; "
                "name others, or leave it out to hold out training rows"
            )


def _no_room(config: Config, key: str) -> Iterator[str]:
    tokens, context = attrgetter(key)(config), config.model.context
    if context is not None and tokens >= context:
        yield f"{key}={tokens}: leaves no room for a prompt in model.context={context}; lower it"


def _training(config: Config) -> Iterator[str]:
    """Why a method cannot be trained: its batches, steps, rollout actors, weight sync and λ do not fit together."""
    learner, rollout, distill = config.learner, config.rollout, config.distill
    rows, ranks = learner.global_batch_size, learner.num_workers
    if over := rows % ranks:
        yield (
            f"learner.global_batch_size={rows}: not divisible by learner.num_workers={ranks}; {rows + ranks - over} is"
        )
    if learner.zero_stage == 0 and config.model.dtype is not Dtype.float32:
        yield (
            f"learner.zero_stage=0: would add up the gradients of a {config.model.dtype.value} model in half "
            "precision; set learner.zero_stage=1, or model.dtype=float32"
        )
    yield from adapter_problems(config)
    if learner.max_steps is not None and learner.warmup_steps >= learner.max_steps:
        yield (
            f"learner.warmup_steps={learner.warmup_steps}: the warm-up would never end within "
            f"learner.max_steps={learner.max_steps}; lower it"
        )
    if config.uses_replay:
        yield from _rehearsal(config)
    if distill.off_policy and not (config.uses_distillation and distill.method is Method.opd):
        yield (
            f"distill.off_policy=true: needs the teacher of distill.method=opd, which does not see the answer that it "
            f"scores, not distill.method={distill.method.value}; leave it out"
        )
    if distill.balance is Balance.budget and (not distill.rehearsal.rows or config.uses_replay):
        yield (
            "distill.balance=budget: its drift is that of rehearsal rows which a teacher scores; set "
            "distill.rehearsal.rows=4 (with distill.rehearsal.kind=rollout), or distill.balance=ema"
        )
    if not config.uses_engines:
        return
    if rollout.tensor_parallel > 1 and rollout.num_gpus < rollout.tensor_parallel:
        yield (
            f"rollout.tensor_parallel={rollout.tensor_parallel}: needs as many GPUs an actor; "
            f"set rollout.num_gpus={rollout.tensor_parallel}"
        )
    yield from _elastic(rollout)
    domain, rehearsal = rows if config.uses_distillation else 0, distill.rehearsal.rows
    if rollout.batch_rows is not None and config.uses_rollouts and rollout.batch_rows > domain + rehearsal:
        parts = {"learner.global_batch_size": domain, "distill.rehearsal.rows": rehearsal}
        most = " + ".join(f"{key}={value}" for key, value in parts.items() if value)
        yield f"rollout.batch_rows={rollout.batch_rows}: a step has no more than {most} rows; lower it"
    yield from _sync(config)
    if domain:
        yield from _no_room(config, "rollout.max_new_tokens")
    if rehearsal and not config.uses_replay:
        yield from _rehearsal(config)
    capped = distill.max_lambda is not None and distill.max_lambda < distill.fixed_lambda
    if distill.balance is Balance.fixed and capped:
        yield (
            f"distill.max_lambda={distill.max_lambda}: below distill.fixed_lambda={distill.fixed_lambda}, "
            "which it would replace; raise or unset it"
        )


def _rehearsal(config: Config) -> Iterator[str]:
    rehearsal, teacher = config.distill.rehearsal, config.teacher.path
    where = f"distill.rehearsal.rows={rehearsal.rows}"
    if rehearsal.count < rehearsal.rows:
        yield (
            f"distill.rehearsal.count={rehearsal.count}: a step would take some prompts twice ({where}); raise it, or "
            "lower distill.rehearsal.rows"
        )
    if not rehearsal.prompts:
        yield 'distill.rehearsal.prompts is empty; set it to "self", or name a file or data set with prompts'
    if config.uses_replay and config.uses_distillation:
        yield (
            f"distill.rehearsal.kind=replay: is for methods without rollouts, not distill.method="
            f"{config.distill.method.value}; set distill.rehearsal.kind=rollout, or distill.method=sft"
        )
    sampled, kind = config.uses_distillation and not config.distill.off_policy, rehearsal.kind
    if config.uses_distillation and not config.uses_replay and sampled is not (kind is RehearsalKind.rollout):
        fix = RehearsalKind.rollout if sampled else RehearsalKind.replay_kl
        yield (
            f"distill.rehearsal.kind={kind.value}: rows and prompts are both sampled or both not, and "
            f"distill.off_policy={str(config.distill.off_policy).lower()}; set distill.rehearsal.kind={fix.value}"
        )
    original = None if config.model.adapter else config.model.path
    if teacher not in (None, original) and not config.uses_replay:
        yield (
            f"teacher.path={teacher}: the student would rehearse another model's answers ({where}); leave teacher.path "
            "out, or set distill.rehearsal.rows=0"
        )
    yield from _no_room(config, "distill.rehearsal.max_new_tokens")


def _elastic(rollout: RolloutConfig) -> Iterator[str]:
    least, most = rollout.min_actors, rollout.max_actors
    if (least is None) != (most is None):
        missing, given = ("min_actors", "max_actors") if least is None else ("max_actors", "min_actors")
        yield f"rollout.{missing} is missing: rollout.{given} is set, and each needs the other"
    if least is not None and most is not None and not least <= rollout.actors <= most:
        yield (
            f"rollout.actors={rollout.actors}: must lie between rollout.min_actors={least} and "
            f"rollout.max_actors={most}"
        )


def _sync(config: Config) -> Iterator[str]:
    """GPUs that `sync.backend` needs and lacks: NCCL refuses two members on one GPU, IPC works on one GPU only."""
    backend, staleness = config.sync.backend, config.sync.max_staleness
    if config.uses_given_trajectories and (config.sync.in_flight or backend is not SyncBackend.object_store):
        yield (
            f"sync.backend={backend}, sync.in_flight={str(config.sync.in_flight).lower()}: no engine takes up weights "
            "where trajectories are given (distill.off_policy, distill.rehearsal.kind=replay_kl); leave them out"
        )
    if config.sync.in_flight and (staleness == 0 or backend is not SyncBackend.object_store):
        yield (
            "sync.in_flight=true: needs sync.max_staleness of 1 or more and sync.backend=object_store, not "
            f"{staleness} and {backend}"
        )
    if backend is SyncBackend.object_store:
        return
    gpus = {"learner.num_gpus": config.learner.num_gpus, "rollout.num_gpus": config.rollout.num_gpus}
    for key, value in gpus.items():
        if value == 0:
            yield (
                f"sync.backend={backend}: needs GPUs, but {key}=0; give the role GPUs, or set sync.backend=object_store"
            )
        if backend is SyncBackend.nccl and value < 1:
            yield (
                f"sync.backend=nccl: {key}={value} is a shared GPU, and NCCL needs one of its own for each member; "
                f"set {key}=1, or sync.backend=ipc"
            )
    shared = sum(gpus.values())
    if backend is SyncBackend.ipc and shared > 1:
        yield (
            f"sync.backend=ipc: learner.num_gpus + rollout.num_gpus={shared:g} do not fit on one GPU, which engine and "
            "learner must share; lower them, or set sync.backend=nccl"
        )


def _baselines(config: Config) -> Iterator[str]:
    """Baselines and overrides that name no method, or change what is shared."""
    own, names = config.distill.method.value, config.run.baselines
    methods = [method.value for method in Method]
    for name in names:
        if name not in methods:
            yield f"run.baselines: there is no method {name}{nearest(name, methods)} (methods: {', '.join(methods)})"
        if names.count(name) > 1:
            yield f"run.baselines: {name} is named twice"
    if own in names:
        yield f"run.baselines: {own} is distill.method already; leave it out"
    for name, overrides in config.run.overrides.items():
        where = f"run.overrides.{name}"
        if name not in methods:
            yield f"{where}: there is no such method{nearest(name, methods)} (methods: {', '.join(methods)})"
        if name == own:
            yield f"{where}: is distill.method, whose keys are set directly; leave it out"
        if not isinstance(overrides, dict):
            yield f"{where}: must hold sections, such as {{learner: {{lr: 1e-4}}}}"
        for section, values in overrides.items():
            if section in SHARED or (section == "distill" and "method" in (values or {})):
                key = "distill.method" if section == "distill" else section
                yield f"{where}.{key}: cannot differ; all methods of a run share it"


def _local(config: Config) -> Iterator[str]:
    """Why a local Ray (`run.local_cpus`) is too small for the run."""
    cpus = config.run.local_cpus
    if cpus is None:
        return
    if config.run.ray_address is not None:
        yield "run.local_cpus is for a local Ray, run.ray_address joins a cluster; leave one of them out"
    needed, _ = required_resources(config)
    if needed > cpus:
        yield (
            f"run.local_cpus={cpus}: the roles ask for {needed:g} CPUs; leave it out, or lower rollout.actors, "
            "teacher.actors or learner.num_workers"
        )
