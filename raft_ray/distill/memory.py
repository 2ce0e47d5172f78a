"""What a run's roles take of memory and of GPUs, counted from the model's config before anything starts.

```
one process takes               learner rank       teacher       rollout engine
  weights                       ZeRO 3 shards      whole         whole, or 1 / tensor_parallel
  gradients, optimizer          by ZeRO stage      -             -
  activations (an estimate)     a micro-batch      teacher.tokens  vLLM's own
  KV cache                      -                  -             kv_cache_gib, or what its share of a GPU leaves
```

All but activations is certain, so that a run that cannot fit is refused; activations are found by `live_memory`. Roles
of a place are added up though they may take turns: PyTorch keeps what a phase has freed. Knows nothing about Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from raft_ray import models
from raft_ray.config import Config, Dtype, Graphs
from raft_ray.distill.attention import attend_in_float32
from raft_ray.distill.learner_memory import LearnerBytes, learner_bytes
from raft_ray.distill.live_memory import LiveTensors, scoring_bytes, training_bytes
from raft_ray.errors import ConfigError
from raft_ray.machine import Machine
from raft_ray.models.adapters import add_adapter, load_adapter
from raft_ray.models.checks import settle_attention

GIB = 2**30
_NEEDS_VALUES = (RuntimeError, TypeError, ValueError, AttributeError)
"""What models raise on the meta device that look at values."""
_PROCESS = round(0.4 * GIB)
"""Of a process with torch and its libraries."""
_CUDA = round(0.5 * GIB)
"""Of a GPU, for a process's CUDA context and its libraries' workspaces."""


@dataclass(frozen=True)
class Need:
    """Bytes that one process of a role takes at a place."""

    role: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    kv_cache: int = 0
    process: int = 0
    reduction: int = 0
    """Buffers in which gradients are added up over ranks, once the passes are over."""
    activations: int | None = 0
    """Of the passes; none is unknown: the model's passes need values."""
    count: int = 1
    """Such processes at the place."""

    @property
    def passes(self) -> int | None:
        """What is there for some time only, at most."""
        return None if self.activations is None else max(self.reduction, self.activations)

    @property
    def certain(self) -> int:
        """All but activations."""
        return self.weights + self.gradients + self.optimizer + self.kv_cache + self.process + self.reduction

    @property
    def total(self) -> int:
        return self.certain - self.reduction + max(self.reduction, self.activations or 0)


@dataclass(frozen=True)
class Place:
    """A GPU, or the machine's memory."""

    name: str
    capacity: int | None
    """In bytes; none where this machine does not have it."""
    needs: list[Need] = field(default_factory=list)

    def sum(self, certain: bool = False) -> int:
        return sum(need.count * (need.certain if certain else need.total) for need in self.needs)


@dataclass(frozen=True)
class Plan:
    parameters: int
    trained: int
    places: list[Place]
    most: dict[str, int] = field(default_factory=dict)
    """Key -> the largest value of it that fits beside all else; 0 where none does."""


@dataclass(frozen=True)
class Line:
    """Bytes of a pass by its tokens: `start + slope · tokens`."""

    start: float
    slope: float

    def at(self, tokens: int) -> int:
        return round(self.start + self.slope * tokens)


def make_plan(config: Config, folder: str, teacher: str, machine: Machine, *, passes: bool = True) -> Plan:
    """The plan of a training on a machine.

    Args:
        folder: of the student's original model, or its hub name; only config.json is read.
        teacher: the teacher's.
        passes: count activations as well, which takes seconds.

    Raises `ModelError`.
    """
    model = student(config, folder, settles=passes)
    total = sum(parameter.numel() for parameter in model.parameters())
    gradients = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    trained = sum(gradients)
    other = model if teacher == folder and not config.learner.lora.rank else _empty(config, teacher)
    served = other if teacher == folder else _empty(config, folder)
    length = longest_row(config, model)
    held = learner_bytes(
        total,
        trained,
        largest=max(gradients),
        half=config.model.dtype is not Dtype.float32,
        stage=config.learner.zero_stage,
        ranks=config.learner.num_workers,
    )
    needs = {
        "learner": _learner(config, held),
        "teacher": Need("teacher", _weights(other), process=_process(config.teacher.num_gpus)),
        "rollout": _rollout(config, served, machine),
    }
    lines: dict[str, Line | None] = {}
    if passes:
        if other is not model:
            _settle(other)
        lines["learner"] = _line(lambda tokens: _training(config, model, tokens, length, held), length)
        if config.uses_rollouts:
            top_k = config.distill.top_k
            lines["teacher"] = _line(lambda tokens: scoring_bytes(other, tokens, length=length, top_k=top_k), length)
    tokens = {"learner": microbatch_tokens(config, length), "teacher": max(config.teacher.tokens, length)}
    for role, line in lines.items():
        needs[role] = replace(needs[role], activations=None if line is None else line.at(tokens[role]))
    if config.learners_score and (scoring := needs["teacher"].activations) and (own := needs["learner"].activations):
        needs["learner"] = replace(needs["learner"], activations=max(own, scoring))
    plan = Plan(total, trained, _places(config, needs, machine, total))
    keys = {"learner": "learner.max_tokens_per_microbatch", "teacher": "teacher.tokens"}
    if config.learner.graphs is Graphs.keep_graph:
        # Whole steps are kept, whatever the micro-batches.
        del keys["learner"]
    for role, key in keys.items():
        place = "learner" if config.learners_score else role
        most = _most(plan.places, needs[place].role, line) if (line := lines.get(role)) else None
        if most is not None:
            plan.most[key] = most
    return plan


def check_memory(config: Config, folder: str, teacher: str, machine: Machine) -> None:
    """Refuse a run that cannot fit: what is certain of its roles is more than a place has. Raises `ConfigError`."""
    for place in make_plan(config, folder, teacher, machine, passes=False).places:
        for need in place.needs if place.capacity is not None else ():
            if need.role == "rollout engine" and need.weights and not need.kv_cache:
                value = config.rollout.gpu_memory_utilization
                raise ConfigError(
                    f"rollout.gpu_memory_utilization={value:g}: the rollout engine's weights take {_gib(need.weights)} "
                    f"GiB of {place.name}, which has {_gib(place.capacity or 0)}: no KV cache is left; raise it"
                )
        needed = place.sum(certain=True)
        if place.capacity is None or needed <= place.capacity:
            continue
        largest = max(place.needs, key=lambda need: need.count * need.certain)
        parts = ", ".join(f"{need.count} {need.role} {_gib(need.count * need.certain)}" for need in place.needs)
        raise ConfigError(
            f"model.path={config.model.path}: the {largest.role} does not fit: the roles need at least {_gib(needed)} "
            f"GiB of {place.name} ({parts}), and there are {_gib(place.capacity)}; {_fix(config, largest, place)}, or "
            "take a smaller model or a larger machine"
        )


def student(config: Config, folder: str, *, settles: bool = True) -> Any:
    """The learner's model on the meta device, as it is trained: precision, adapter, gradient checkpointing and, if it
    `settles` on that by a pass, attention."""
    model = _empty(config, folder, learner=True)
    if settles:
        _settle(model)
    half = config.model.dtype is not Dtype.float32
    if config.learner.lora.rank:
        adapter = models.split(folder)[1]
        if adapter is None:
            add_adapter(model, config.learner.lora, config.run.seed)
        else:
            load_adapter(model, adapter, allow_pickle=config.model.allow_pickle, lora=config.learner.lora)
        # peft makes an adapter in float32, DeepSpeed turns it into the model's dtype.
        model.to(torch.bfloat16 if half else torch.float32)
    if half and not config.learner.num_gpus:
        attend_in_float32(model)
    if config.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def longest_row(config: Config, model: Any) -> int:
    """Tokens of the longest sequence that a micro-batch can have."""
    data, text = config.data, model.config.get_text_config()
    context = config.model.context or getattr(text, "max_position_embeddings", None) or data.max_prompt
    written = config.longest_rollout if config.uses_rollouts else 0
    return int(min(context, data.max_prompt + data.max_answer + written))


def microbatch_tokens(config: Config, length: int) -> int:
    """Tokens, at most, of which a learner rank keeps the graph at once."""
    learner = config.learner
    rows = (learner.global_batch_size + config.distill.rehearsal.rows) // learner.num_workers or 1
    whole = rows * length
    return whole if learner.graphs is Graphs.keep_graph else min(whole, max(learner.max_tokens_per_microbatch, length))


def _empty(config: Config, folder: str, *, learner: bool = False) -> Any:
    dtype = getattr(torch, config.model.dtype.value)
    if learner and config.model.dtype is Dtype.float16:
        dtype = torch.bfloat16
    return models.empty_model(folder, config.model, dtype)


def _settle(model: Any) -> None:
    """What `load_model` does on values."""
    with suppress(*_NEEDS_VALUES), LiveTensors(model):
        settle_attention(model)


def _training(config: Config, model: Any, tokens: int, length: int, held: LearnerBytes) -> int:
    """The passes of a micro-batch and what lies beside them, without the gradients that they leave."""
    shared = config.uses_distillation and config.learner.share_prompt is not False
    top_k = config.distill.top_k if config.uses_rollouts else None
    found = training_bytes(model, tokens, length=length, top_k=top_k, shared=shared, keeps=held.left > 0)
    return max(0, found - held.left) + held.beside


def _line(measure: Callable[[int], int], length: int) -> Line | None:
    """Through a pass of one row and one of two; none where the model's passes need values."""
    try:
        one, two = measure(length), measure(2 * length)
    except _NEEDS_VALUES:
        return None
    slope = (two - one) / length
    return Line(one - slope * length, slope)


def _learner(config: Config, held: LearnerBytes) -> Need:
    return Need(
        "learner rank",
        weights=held.weights,
        gradients=held.gradients,
        optimizer=held.optimizer,
        process=_process(config.learner.num_gpus),
        reduction=held.reduction,
    )


def _process(gpus: float) -> int:
    return _CUDA if gpus else _PROCESS


def _rollout(config: Config, model: Any, machine: Machine) -> Need:
    rollout = config.rollout
    weights = _weights(model) // rollout.tensor_parallel
    if not rollout.num_gpus:
        cache = round(rollout.kv_cache_gib * GIB)
        return Need("rollout engine", weights, kv_cache=cache, process=_PROCESS)
    # vLLM takes its share of the whole GPU: what weights leave is KV cache and its own activations.
    reserved = round(rollout.gpu_memory_utilization * (machine.gpus[0] if machine.gpus else 0))
    return Need("rollout engine", weights, kv_cache=max(0, reserved - weights), process=_CUDA)


def _weights(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _places(config: Config, needs: dict[str, Need], machine: Machine, total: int) -> list[Place]:
    """Every process where it runs: in the machine's memory, or on the first GPU with room for its share."""
    asked = [("learner", config.learner.num_workers, config.learner.num_gpus)]
    if config.loads_weights:
        asked.append(("rollout", config.rollout.actors, config.rollout.num_gpus))
    if config.uses_teachers:
        asked.append(("teacher", config.teacher.actors, config.teacher.num_gpus))
    memory, gpus, free = list[Need](), list[list[Need]](), list[float]()
    for role, count, share in asked:
        if not share:
            memory.append(replace(needs[role], count=count))
            continue
        memory.append(Need(needs[role].role, process=_PROCESS, count=count))
        for _ in range(count):
            for at in _take(free, share):
                gpus.extend([] for _ in range(at + 1 - len(gpus)))
                gpus[at].append(needs[role])
    if config.loads_weights:
        width = 4 if config.model.dtype is Dtype.float32 else 2
        memory.append(Need("object store", total * width))
    places = [
        Place(f"GPU {at}", machine.gpus[at] if at < len(machine.gpus) else None, on_it) for at, on_it in enumerate(gpus)
    ]
    return [*places, Place("memory", machine.memory, memory)]


def _take(free: list[float], share: float) -> Iterator[int]:
    """The GPUs that a process gets, whose free shares `free` are lowered."""
    for _ in range(max(1, math.floor(share))):
        part = min(share, 1.0)
        at = next((at for at, left in enumerate(free) if left + 1e-9 >= part), len(free))
        if at == len(free):
            free.append(1.0)
        free[at] -= part
        yield at


def _most(places: list[Place], role: str, line: Line) -> int | None:
    """The most tokens with which a role's processes fit at each of their places; none if no size is known."""
    found = []
    for place in places:
        ours = [need for need in place.needs if need.role == role and need.weights]
        if ours and place.capacity is not None:
            count = sum(need.count for need in ours)
            left = (place.capacity - place.sum()) / count + (ours[0].passes or 0)
            fits = left >= ours[0].reduction
            found.append(max(0, int((left - line.start) / line.slope)) if fits else 0)
    return min(found, default=None)


def _fix(config: Config, need: Need, place: Place) -> str:
    """Which keys make the largest need of a place smaller."""
    on_gpu, learner = place.name.startswith("GPU"), config.learner
    if need.role == "rollout engine":
        key, value = ("gpu_memory_utilization", config.rollout.gpu_memory_utilization)
        if not on_gpu:
            key, value = "kv_cache_gib", config.rollout.kv_cache_gib
        return f"lower rollout.{key}={value:g}" + ("" if on_gpu else " or rollout.actors")
    if need.role == "learner rank":
        keys = [] if learner.lora.rank else ["learner.lora.rank=16"]
        keys += ["model.dtype=bfloat16"] if config.model.dtype is Dtype.float32 else []
        if not on_gpu and need.count > 1:
            keys.append(f"a lower learner.num_workers than {need.count}")
        if on_gpu and learner.zero_stage < 3:
            keys.append("learner.zero_stage=3 over more learner.num_workers")
        return f"set {' or '.join(keys)}" if keys else "lower learner.num_workers"
    if need.role == "teacher":
        return "lower teacher.actors" if need.count > 1 else "set another teacher.path"
    return "set model.dtype=bfloat16" if config.model.dtype is Dtype.float32 else "set distill.method=sft"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
