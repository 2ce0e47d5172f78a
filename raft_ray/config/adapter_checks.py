"""Refuses what cannot work with an adapter (`learner.lora`), or without: learners as the teacher, swapped adapters."""

from __future__ import annotations

from collections.abc import Iterator

from raft_ray.config import Config, Dtype, SyncAdapter, SyncBackend, TeacherConfig, TeacherPlace

LARGEST_ADAPTER = 512
"""vLLM's largest `max_lora_rank`."""


def adapter_problems(config: Config) -> Iterator[str]:
    """A line for every rule that is broken, with key and fix."""
    learner = config.learner
    if learner.lora.rank and learner.lora.dora and learner.zero_stage == 3:
        yield (
            "learner.lora.dora=true: takes norms of whole weights, which ranks at learner.zero_stage=3 do not have; "
            "set learner.zero_stage=2, or learner.lora.dora=false"
        )
    if config.teacher.place is TeacherPlace.learner:
        yield from _teacher(config)
    if config.uses_engines and config.sync.adapter is SyncAdapter.hot:
        yield from _hot(config)


def _teacher(config: Config) -> Iterator[str]:
    """Why the learners cannot be the teacher (`teacher.place=learner`)."""
    teacher, where, own = config.teacher, "teacher.place=learner", "leave teacher.place out"
    if not config.uses_rollouts:
        yield f"{where}: distill.method={config.distill.method.value} as it is set has no teacher; {own}"
    if not config.learner.lora.rank:
        yield (
            f"{where}: without an adapter (learner.lora.rank=0) training changes the weights that the teacher needs; "
            f"set learner.lora.rank=16, or {own}"
        )
    if teacher.path not in (None, config.model.path):
        yield (
            f"teacher.path={teacher.path}: with {where} the teacher is the student's own base; leave teacher.path out, "
            "or set teacher.place=own"
        )
    if config.model.dtype is Dtype.float16:
        yield (
            f"{where}: learners compute a float16 model in bfloat16, and so would the teacher; set "
            f"model.dtype=bfloat16, or {own}"
        )
    for key, default in (("actors", TeacherConfig.actors), ("max_restarts", TeacherConfig.max_restarts)):
        if (value := getattr(teacher, key)) != default:
            yield f"teacher.{key}={value}: with {where} there are no teacher actors; leave one of them out"


def _hot(config: Config) -> Iterator[str]:
    """Why adapters cannot be swapped in the engines (`sync.adapter=hot`)."""
    lora, backend = config.learner.lora, config.sync.backend
    in_float32 = config.model.dtype is Dtype.float32 and config.rollout.num_gpus > 0
    for fault, what in (
        (config.uses_given_trajectories, "no engine takes up weights where trajectories are given; leave it out"),
        (not lora.rank, "learner.lora.rank=0 has no adapter; set learner.lora.rank=16"),
        (lora.dora, "vLLM serves no DoRA adapter apart from its base; set learner.lora.dora=false"),
        (
            lora.rank > LARGEST_ADAPTER,
            f"vLLM serves adapters up to rank {LARGEST_ADAPTER}, not learner.lora.rank={lora.rank}; lower it",
        ),
        (backend is not SyncBackend.object_store, f"sync.backend={backend} pushes whole weights; leave it out"),
        (in_float32, "on GPUs vLLM serves no adapter of model.dtype=float32; set model.dtype=bfloat16"),
    ):
        if fault:
            yield f"sync.adapter=hot: {what}, or set sync.adapter=merged"
