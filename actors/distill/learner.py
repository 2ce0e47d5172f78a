"""The learners: Ray Train workers, each a rank of DeepSpeed, for which the rest of the system is a data loader.

```
for step in steps:
    batch = pipeline.next_batch(step, rank)     waits until the step is sampled and scored
    losses = train_step(...)                    SFT + λ · KL, one DeepSpeed update
    publisher.publish(step + 1)                 all ranks: the new weights, by sync.backend
    pipeline.publish(step + 1, ref)             rank 0; frees places, offers the weights to rollout actors
    checkpoint now and then
```

On a restart of the worker group (Ray Train does it) the loop starts again from the last checkpoint, and rank 0 tells
the pipeline to start over from there.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from actors.distill.checkpoint import Checkpoints
from actors.distill.export import export_model
from actors.distill.storage import Storage
from actors.engine.weight_backends import make_publisher
from actors.engine.weight_publish import Update
from actors.runtime.cluster import actor_options, here, log_to_file, on_node
from actors.runtime.remote import ActorLost, one_line, root_cause
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import Balance, Config, Dtype, Graphs
from raft_ray.distill.attention import attend_in_float32
from raft_ray.distill.losses import EmaBalancer, FixedBalancer
from raft_ray.distill.order import RowOrder
from raft_ray.distill.schedule import learning_rate
from raft_ray.distill.step import StepLosses, train_step
from raft_ray.distill.student import Student, answer_logprobs, empty_micro_batch, make_micro_batches, sharing_error
from raft_ray.distill.trajectory import Probe, Sample
from raft_ray.errors import ModelError, RaftError
from raft_ray.models.checks import check_repeatable
from raft_ray.models.head import Head
from raft_ray.models.prompts import EncodedRow
from raft_ray.runs.trained import Trained

PROBE_TOKENS = 128
# By whether the model computes in half precision: what rounding does, and no more than a tenth of what an error does.
SHARING_ERROR = {False: 1e-3, True: 0.1}
"""Relative difference of hidden states (`raft_ray.distill.student.sharing_error`)."""
LOGPROB_ERROR = {False: 0.02, True: 0.3}
"""Mean absolute difference of log-probabilities between learner and rollout engine, nats per token."""

HEALTH_VARIABLE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
PATIENCE = 1.5
"""Times `learner.timeout`."""
SILENCE = 60.0
"""Seconds for which a learner's process may not answer Ray Train, at most `learner.timeout`; then it is replaced."""


@dataclass
class LearnerTask:
    """All that a worker needs to know."""

    config: Config
    folder: str
    table: list[ray.ObjectRef]
    """The encoded training rows, in a list."""
    pipeline: Any
    """Handle of the pipeline actor."""
    order: RowOrder
    digest: str
    """`rows_digest` of the table."""
    distils: bool
    run_dir: str
    node: str
    """Id of the node that holds the run folder; the finished model is written there."""
    storage: Storage
    """Of the checkpoints; every node must reach it."""
    start: str | None
    """The checkpoint there from which this driver goes on."""
    trained: Trained
    """What the model at the end is of."""


def train(task: LearnerTask, controlled_by: Callable[[Any], None] = lambda controller: None) -> None:
    """Run the worker group to the end of training. Raises `TrainingFailedError` when restarts are used up, and
    `ActorLost` when Ray Train's controller dies.

    Args:
        controlled_by: called with Ray Train's controller when it has started.
    """
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from actors.runtime.loopback import INTERFACE, LoopbackConfig, is_local

    learner = task.config.learner

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays with the command line: Ray Train's handler outlives the training and swallows it."""
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
        _train_loop,
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


@contextmanager
def _health_checks(limit: float) -> Iterator[None]:
    """Let Ray Train replace a worker that does not answer for `limit` seconds, and not for ten minutes as by default.

    Ray Train takes it from the environment; what the user has set there counts.
    """
    given = HEALTH_VARIABLE in os.environ
    os.environ.setdefault(HEALTH_VARIABLE, f"{limit:g}")
    try:
        yield
    finally:
        if not given:
            del os.environ[HEALTH_VARIABLE]


def _train_loop(arguments: dict[str, Any]) -> None:
    """What a rank does."""
    task: LearnerTask = arguments["task"]
    context = ray.train.get_context()
    log_to_file(Path(task.run_dir), f"learner-{context.get_world_rank()}")
    timeout = task.config.learner.timeout
    if ray.get(task.pipeline.stopped.remote(), timeout=timeout):
        return
    try:
        Rank(task, context.get_world_rank(), context.get_world_size()).run()
    except (ray.exceptions.RayTaskError, ModelError) as error:
        cause = root_cause(error)
        if not isinstance(cause, RaftError):
            raise
        # An actor, a task or this model has been refused: starting the learners again would not mend it. The driver
        # asks for the cause.
        logging.exception("the run stops")
        ray.get(task.pipeline.stop.remote(str(cause)), timeout=timeout)
        if context.get_world_size() > 1:
            # Other ranks may wait for this one in a collective. Ray Train ends them, and the next group sees `stopped`.
            raise
    except Exception:
        logging.exception("the rank fails")
        raise


class Rank:
    """One data-parallel rank: its engine, its place in the run, and the loop over steps."""

    def __init__(self, task: LearnerTask, rank: int, ranks: int) -> None:
        self.task = task
        self.config = task.config
        self.rank = rank
        self.ranks = ranks
        self.steps = task.order.steps
        self.name = f"learner-{rank}"
        self._checkpoint_seconds = 0.0
        self.table: dict[int, EncodedRow] = ray.get(task.table[0], timeout=self.config.learner.timeout)
        self.kept = min(self.config.distill.top_k, models.vocabulary_size(task.folder, self.config.model))
        distill = self.config.distill
        self.balancer: EmaBalancer | FixedBalancer = (
            EmaBalancer(distill.ema_beta, max_lambda=distill.max_lambda)
            if distill.balance is Balance.ema
            else FixedBalancer(distill.fixed_lambda)
        )
        threads = self.config.learner.threads
        if threads:
            torch.set_num_threads(threads)
        key = self._call(task.pipeline.checkpoint_key.remote())
        self.checkpoints = Checkpoints(task.storage, task.start, self.config, task.order, task.digest, key)
        self.half = self.config.model.dtype is not Dtype.float32
        self.engine = make_engine(self.config, task.folder, universal=self.checkpoints.universal)
        self.student: Student = self.engine.module
        self.device = next(self.student.parameters()).device
        self.share_prompt = self._may_share()
        self.publisher = make_publisher(
            self.config, self.student.model, rank, lambda version: self._call(task.pipeline.hold.remote(version))
        )

    def run(self) -> None:
        """From the last checkpoint, or from the original model, to the last step; rank 0 then exports the model."""
        step = self._restore()
        # Also version 0: an engine that survived a restart may hold later weights.
        first = self.publisher.pack(step) if self.task.distils else Update(step)
        probe = self._probe() if self.task.distils else None
        if self.rank == 0:
            begun = self.task.pipeline.begin.remote(step, first.ref, first.checksum, self.task.table, probe)
            self._call(begun)
        torch.distributed.barrier()
        for at in range(step, self.steps):
            self._step(at)
        if step == self.steps:
            self._export(self.publisher.pack(step).ref)

    def _step(self, step: int) -> None:
        clock = Clock()
        learner, distill = self.config.learner, self.config.distill
        rows, samples = self._next_batch(step)
        clock.lap("wait")

        total = int(self._sum([float(len(rows))])[0])
        batches = make_micro_batches(
            rows,
            samples if self.task.distils else None,
            total=total,
            tokens=learner.max_tokens_per_microbatch,
            share_prompt=self.share_prompt,
        )
        empty = empty_micro_batch(self.kept if self.task.distils else None)
        batches += [empty] * (self._largest(len(batches)) - len(batches))
        tokens = sum(batch.tokens for batch in batches)
        lr = learning_rate(learner, step, self.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.student.student_mass.clear()
        announce(self.name, "forward", step)
        losses = train_step(
            self.engine,
            [batch.to(self.device) for batch in batches],
            balancer=self.balancer if self.task.distils else None,
            ranks=self.ranks,
            hold=learner.graphs is Graphs.hold,
            reduce=lambda sums: self._reduced(sums, step),
            on_gradients=lambda: clock.lap("forward_backward"),
        )
        clock.lap("optimizer")

        last = step + 1 == self.steps
        update = self._published(step + 1)
        masses = self.student.student_mass
        mass_sum, mass_count, all_tokens = self._sum([sum(masses), float(len(masses)), float(tokens)])
        clock.lap("sync")
        if self.rank == 0:
            record: dict[str, Any] = {
                "loss": losses.loss,
                "sft_loss": losses.sft,
                "kl_loss": losses.kl,
                "lambda": losses.weight,
                "ce_kl_ratio": _ratio(losses),
                "student_mass": mass_sum / mass_count if mass_count else None,
                "tokens": int(all_tokens),
                "lr": lr,
                "grad_norm": float(self.engine.get_global_grad_norm()),
                "weights_bytes": update.nbytes if self.task.distils else 0,
                "temperature": distill.temperature if self.task.distils else None,
            }
            record["seconds"] = clock.seconds(checkpoint=self._checkpoint_seconds)
            self._call(self.task.pipeline.publish.remote(step + 1, update.ref, update.checksum, record))
        # After publishing: a death in between repeats the step, and the books lose no line. Rollouts go on meanwhile.
        self._checkpoint_seconds = 0.0
        if last or (learner.checkpoint_every and (step + 1) % learner.checkpoint_every == 0):
            start = time.perf_counter()
            self.checkpoints.save(self.engine, step + 1, self.balancer.state_dict())
            self._checkpoint_seconds = time.perf_counter() - start
        if last:
            self._export(update.ref)

    def _may_share(self) -> bool:
        """Whether rows may share their prompts (`learner.share_prompt`): measured on the longest row that can come."""
        wanted = self.config.learner.share_prompt
        if not self.task.distils or wanted is False:
            return False
        row = max(self.table.values(), key=lambda row: len(row.prompt) + len(row.answer))
        response = (row.answer * (self.config.rollout.max_new_tokens // len(row.answer) + 1))[
            : self.config.rollout.max_new_tokens
        ]
        self.engine.eval()
        # One number for all ranks: they must decide alike.
        error = self._sum([sharing_error(self.engine, row, response, self.device)])[0] / self.ranks
        self.engine.train()
        allowed = SHARING_ERROR[self.half]
        if error <= allowed:
            return True
        name = type(self.student.model).__name__
        found = (
            f"{name} computes other hidden states for a row of {len(row.prompt)} + {len(row.answer)} + {len(response)} "
            f"tokens that shares its prompt (relative difference {error:.2g}, rounding makes at most {allowed:g})"
        )
        if wanted:
            raise ModelError(f"learner.share_prompt=true: {found}; leave learner.share_prompt out")
        if math.isinf(error) and self.config.learner.zero_stage == 3:
            # Its forward pass was left half-way, and ZeRO-3 holds parameters until its end.
            raise ModelError(f"learner.zero_stage=3: {found}; set learner.share_prompt=false")
        if self.rank == 0:
            self._call(self.task.pipeline.notice.remote(f"prompts are not shared: {found}"))
        return False

    def _probe(self) -> Probe:
        """What rollout engines must find likely too, once they hold the weights that training starts from."""
        row = min(self.table.values(), key=lambda row: abs(len(row.prompt) + len(row.answer) - PROBE_TOKENS))
        # The engine must have room for a token after it.
        room = models.model_context(self.task.folder, self.config.model) - len(row.prompt) - 1
        row = EncodedRow(row.row, row.prompt, row.answer[: min(PROBE_TOKENS, room)], [])
        self.engine.eval()
        logprobs = answer_logprobs(self.engine, row, self.device)
        self.engine.train()
        return Probe(row.prompt, row.answer, logprobs, LOGPROB_ERROR[self.half])

    def _next_batch(self, step: int) -> tuple[list[EncodedRow], list[Sample]]:
        """This rank's rows and samples; samples that went down with a node are asked for again."""
        while True:
            batch = self._call(self.task.pipeline.next_batch.remote(step, self.rank, self.ranks))
            rows = [self.table[row] for _, _, row in batch]
            if not self.task.distils:
                return rows, []
            samples, lost = [], []
            for _, (ref,), row in batch:
                try:
                    samples.append(self._call(ref))
                except ray.exceptions.OwnerDiedError:
                    # The pipeline is gone, and with it every reference: a matter for a restart.
                    raise
                except ray.exceptions.ObjectLostError:
                    lost.append(row)
            if not lost:
                return rows, samples
            self._call(self.task.pipeline.lost.remote(step, lost))

    def _reduced(self, sums: list[float], step: int) -> list[float]:
        """The losses of all ranks; between the forward and the backward pass."""
        announce(self.name, "backward", step)
        return self._sum(sums)

    def _published(self, version: int) -> Update:
        """The model's weights, for the rollout actors; the last ones for the export, which reads the object store."""
        if version == self.steps:
            return self.publisher.pack(version)
        return self.publisher.publish(version) if self.task.distils else Update(version)

    def _restore(self) -> int:
        """The step to go on from: that of the last checkpoint, or 0."""
        state = self.checkpoints.restore(self.engine)
        if state is None:
            return 0
        self.balancer.load_state_dict(state.balancer)
        return state.step

    def _export(self, ref: list[ray.ObjectRef] | None) -> None:
        """Write `model/` on the run folder's node, from the object store; the store forgets our puts when we end."""
        if self.rank == 0:
            assert ref is not None
            task = export_model.options(num_cpus=0, **on_node(self.task.node))
            target = str(Path(self.task.run_dir) / "model")
            written = task.remote(self.config.model, self.task.folder, ref, target, self.task.trained)
            # Not longer than the other ranks wait.
            self._call(written, "the export of the model", self.config.learner.timeout)
        torch.distributed.barrier()

    def _call(self, ref: Any, what: str = "the pipeline actor", limit: float | None = None) -> Any:
        """The value of a remote call. The pipeline's own limit is `learner.timeout`, and its message says more."""
        limit = limit or PATIENCE * self.config.learner.timeout
        try:
            return ray.get(ref, timeout=limit)
        except ray.exceptions.GetTimeoutError as error:
            raise RaftError(f"{self.name} on {here()}: {what} has not answered for {limit:g} s") from error

    def _sum(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(v) for v in total]

    def _largest(self, value: int) -> int:
        most = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)


class Clock:
    """Seconds by phase; `lap(name)` ends a phase that began with the last lap."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self, checkpoint: float) -> dict[str, float]:
        """All phases, and `total` since the clock was made; the checkpoint before the step counts to it."""
        total = checkpoint + time.perf_counter() - self._start
        return {"checkpoint": checkpoint, **self._laps, "total": total}


def load_student(config: Config, folder: str) -> Any:
    """The model as it is trained: float16 rollouts, too, are trained in bfloat16, which needs no loss scaling.

    Raises `ModelError`.
    """
    dtype = torch.float32 if config.model.dtype is Dtype.float32 else torch.bfloat16
    model = models.load_model(folder, config.model, dtype, dropout=config.learner.dropout)
    if not config.learner.dropout:
        check_repeatable(model)
    return model


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
    if half and not on_gpu:
        attend_in_float32(model)
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    student = Student(model, config.distill.temperature)
    optimizer = torch.optim.AdamW(
        student.parameters(),
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


def _clip(most: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Clip the gradients of all ranks, which DeepSpeed has summed, and keep the norm where it looks for it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, most)  # type: ignore[attr-defined]


def _ratio(losses: StepLosses) -> float | None:
    """Cross-entropy over weighted KL (the paper's Fig. 2a): near 1 where λ balances them."""
    if losses.kl is None or losses.weight is None or losses.kl * losses.weight == 0:
        return None
    return losses.sft / (losses.weight * losses.kl)
