"""The student's model as it is trained: loaded, proved, and wrapped in a DeepSpeed engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import ray
import torch

from actors.engine.vllm_engine import check_adapters_served
from raft_ray import models
from raft_ray.config import Config, Dtype
from raft_ray.distill.attention import attend_in_float32
from raft_ray.distill.learner_memory import BUCKET
from raft_ray.distill.student import Student
from raft_ray.models.adapters import add_adapter, load_adapter
from raft_ray.models.checks import check_repeatable
from raft_ray.models.head import Head


def load_student(config: Config, folder: str) -> Any:
    """The model as it is trained, with its adapter if it has one: float16 rollouts, too, are trained in bfloat16, which
    needs no loss scaling.

    Raises `ModelError`.
    """
    dtype = torch.float32 if config.model.dtype is Dtype.float32 else torch.bfloat16
    lora, (base, adapter) = config.learner.lora, models.split(folder)
    model = models.load_model(base if lora.rank else folder, config.model, dtype, dropout=config.learner.dropout)
    if not config.learner.dropout:
        check_repeatable(model)
    if lora.rank and adapter is not None:
        load_adapter(model, adapter, allow_pickle=config.model.allow_pickle, lora=lora)
    elif lora.rank:
        add_adapter(model, lora, config.run.seed)
    return model


def try_model(config: Config, folder: str) -> None:
    """Load the student's model somewhere on the cluster and let it go, before hours go into stage 1. Raises
    `ModelError` as a learner or an engine would, or `ray.exceptions.RayError` where it cannot be loaded in
    `learner.timeout`."""
    ray.get(_try.options(num_cpus=1).remote(config, folder), timeout=config.learner.timeout)


@ray.remote(max_calls=1)
def _try(config: Config, folder: str) -> None:
    """In a process that ends with it, and gives the memory back."""
    model = load_student(config, folder)
    if config.swaps_adapters:
        check_adapters_served(type(model).__name__)


def make_engine(config: Config, folder: str, universal: bool = False) -> Any:
    """The student in a DeepSpeed engine: ZeRO stage, precision and AdamW of the config.

    Args:
        universal: the engine loads DeepSpeed's universal checkpoints (`Checkpoints.universal`).
    """
    import deepspeed

    learner = config.learner
    on_gpu = learner.num_gpus > 0
    # An operation of DeepSpeed's inference, which it would compile here, for half a minute and more.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    half = config.model.dtype is not Dtype.float32
    # DeepSpeed clips plain float32 too, but tells nobody the norm.
    plain = not half and learner.zero_stage == 0
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        # We say when a step is complete: a step's micro-batches differ in number.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if plain else learner.grad_clip,
        "zero_optimization": {"stage": learner.zero_stage},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
    }
    if half:
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    model = load_student(config, folder)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # DeepSpeed takes a whole bucket of memory on a GPU, however few gradients there are.
    settings["zero_optimization"]["reduce_bucket_size"] = min(trained, BUCKET)
    if half and not on_gpu:
        attend_in_float32(model)
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    student = Student(model, config.distill.temperature, config.distill.loss)
    if learner.lora.rank:
        student.register_state_dict_post_hook(_without_frozen)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lr=learner.lr,
        betas=(learner.beta1, learner.beta2),
        weight_decay=learner.weight_decay,
        fused=True,
    )
    if plain:
        optimizer.register_step_pre_hook(partial(_clip, learner.grad_clip))
    if learner.zero_stage == 3:
        # The losses use the head outside its own module: ZeRO must gather it for the student's whole forward.
        head = Head.of(model)
        for parameter in (head.weight, head.bias):
            if parameter is not None:
                deepspeed.zero.register_external_parameter(student, parameter)
    engine, *_ = deepspeed.initialize(model=student, optimizer=optimizer, config=settings)
    return engine


def _without_frozen(student: Student, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave out of a state what is not trained; DeepSpeed would keep the second name of a tied tensor."""
    for name, parameter in student.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _clip(most: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Clip the gradients of all ranks, which DeepSpeed has summed, and keep the norm where it looks for it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, most)  # type: ignore[attr-defined]
