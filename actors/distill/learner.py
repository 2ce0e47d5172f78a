"""The learners: Ray Train workers, each a rank of DeepSpeed, for which the rest of the system is a data loader.

```
for step in steps:
    batch = pipeline.next_batch(step, rank)     waits until the step is sampled and scored
    batch = teacher.score(batch)                with teacher.place=learner, which has it sampled alone
    losses = train_step(...)                    SFT + λ · KL + w · rehearsal, one DeepSpeed update
    weights = publisher.publish(step + 1)       all ranks: the new weights, by sync.backend
    pipeline.publish(weights, metrics)          rank 0; frees slots, offers the weights to rollout actors
    checkpoint now and then
```

On a restart of the worker group (Ray Train does it) the loop starts again from the last checkpoint, and rank 0 tells
the pipeline to start over from there.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.distill.base_teacher import BaseTeacher, Unscored
from actors.distill.checkpoint import Checkpoints
from actors.distill.clock import Clock
from actors.distill.drift import DriftMeter
from actors.distill.export import export_model
from actors.distill.probes import make_probe, may_share_prompts
from actors.distill.storage import Storage
from actors.distill.student_engine import make_engine
from actors.distill.validation import Verdict
from actors.engine.weight_sync import Publisher, WeightVersion
from actors.engine.weights import adapter_tensors
from actors.runtime.cluster import here, log_to_file, on_node
from actors.runtime.remote import root_cause
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import Config, Graphs, Keep
from raft_ray.distill.losses import BudgetBalancer, make_balancer
from raft_ray.distill.order import RowOrder
from raft_ray.distill.schedule import learning_rate
from raft_ray.distill.step import StepLosses, train_step
from raft_ray.distill.student import MicroBatch, Student, empty_micro_batch, make_micro_batches
from raft_ray.distill.trajectory import Sample
from raft_ray.errors import ModelError, RaftError
from raft_ray.models.adapters import adapter_files
from raft_ray.models.prompts import EncodedRow
from raft_ray.runs.trained import Trained

PATIENCE = 1.5
"""Times `learner.timeout`."""


@dataclass
class LearnerTask:
    """All that a worker needs to know."""

    config: Config
    folder: str
    table: list[ray.ObjectRef]
    """References of the encoded training rows, those of rehearsal included, and of the validation set, if any."""
    pipeline: Any
    """Handle of the pipeline actor."""
    order: RowOrder
    digest: str
    """`rows_digest` of the table."""
    run_dir: str
    node: str
    """Id of the node that holds the run folder; the finished model is written there."""
    storage: Storage
    """Of the checkpoints; every node must reach it."""
    start: str | None
    """The checkpoint there from which this driver goes on."""
    trained: Trained
    """What the model at the end is of."""


def train_loop(arguments: dict[str, Any]) -> None:
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
        config = task.config
        self.task, self.config = task, config
        self.rank, self.ranks = rank, ranks
        self.name = f"learner-{rank}"
        self.table: dict[int, EncodedRow] = ray.get(task.table[0], timeout=config.learner.timeout)
        self.kept = min(config.distill.top_k, models.vocabulary_size(task.folder, config.model))
        self.rehearses = task.order.rehearsal is not None
        self.balancer = make_balancer(config.distill)
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        key = self._call(task.pipeline.checkpoint_key.remote())
        self.checkpoints = Checkpoints(task.storage, task.start, config, task.order, task.digest, key)
        # What dropout leaves out; a checkpoint goes on with the states that it holds.
        torch.manual_seed(np.random.SeedSequence([config.run.seed, rank]).generate_state(1)[0].item())
        self.engine = make_engine(config, task.folder, universal=self.checkpoints.universal)
        self.student: Student = self.engine.module
        self.device = next(self.student.parameters()).device
        self.teacher = BaseTeacher(self.engine, config, self.most) if config.learners_score else None
        self.share_prompt = config.uses_distillation and self._may_share()
        self.drift: DriftMeter | None = None
        self.verdict: Verdict | None = None
        """Of the newest evaluation."""
        if config.eval.every and (pairs := self._call(task.pipeline.known_base.remote())):
            # Before `restore`: the engine has the original weights.
            self.drift = DriftMeter(self.engine, config, pairs)
        self.probes_next = config.swaps_adapters and not config.sync.in_flight
        """At the start of training B is 0, so that nothing would tell of an adapter that is left out. In flight an
        engine has no time for it."""
        self.publisher = Publisher(
            config, self.student.model, rank, lambda version: self._call(task.pipeline.hold.remote(version))
        )

    def run(self) -> None:
        """From the last checkpoint, or from the original model, to the last step, or until an evaluation ends training;
        rank 0 then exports the model."""
        learner, steps = self.config.learner, self.task.order.steps
        balances = self.config.uses_distillation or isinstance(self.balancer, BudgetBalancer)
        start = self._restore()
        weights = self._begin(start)
        done, ends = start, self._evaluate(weights)
        checkpoint_seconds = 0.0
        for step in range(start, steps):
            if ends:
                break
            clock = Clock(checkpoint_seconds)
            rows = self._next_batch(step)
            clock.lap("wait")
            if self.teacher is not None:
                announce(self.name, "scoring", step)
                rows, infos = self.teacher.score(rows)
                self._call(self.task.pipeline.scored.remote(step, self.rank, infos))
                clock.lap("teacher")

            batches = self._micro_batches(rows, rehearsal=False)
            rehearsal = self._micro_batches(rows, rehearsal=True) if self.rehearses else []
            lr = self._set_learning_rate(step)
            self.student.topk_mass.clear()
            announce(self.name, "forward", step)
            losses = train_step(
                self.engine,
                [batch.to(self.device) for batch in batches],
                balancer=self.balancer if balances else None,
                rehearsal=[batch.to(self.device) for batch in rehearsal],
                rehearsal_weight=self.config.distill.rehearsal.weight,
                ranks=self.ranks,
                keep_graph=learner.graphs is Graphs.keep_graph,
                reduce=partial(self._reduced, step),
                on_gradients=partial(clock.lap, "forward_backward"),
            )
            clock.lap("optimizer")

            weights = self._weights(step + 1)
            metrics = self._metrics(losses, [*batches, *rehearsal]) | {"lr": lr}
            clock.lap("sync")
            if self.rank == 0:
                metrics["seconds"] = clock.seconds()
                self._call(self.task.pipeline.publish.remote(weights, metrics))

            # After publishing: a death in between repeats the step, and the records lose no line. Rollouts go on.
            done, ends = step + 1, self._evaluate(weights)
            began = time.perf_counter()
            if ends or step + 1 == steps or (learner.checkpoint_every and (step + 1) % learner.checkpoint_every == 0):
                self.checkpoints.save(self.engine, step + 1, self.balancer.state_dict())
            checkpoint_seconds = time.perf_counter() - began
        repacks = done == start and not self.config.swaps_adapters
        self._finish(self.publisher.pack(done) if repacks else weights)

    def _restore(self) -> int:
        """The step to go on from: that of the last checkpoint, or 0."""
        state = self.checkpoints.restore(self.engine)
        if state is None:
            return 0
        if state.balancer.keys() == self.balancer.state_dict().keys():  # Else `run.allow_changes`: it begins anew.
            self.balancer.load_state_dict(state.balancer)
        return state.step

    def _begin(self, step: int) -> WeightVersion:
        """Tell the pipeline where training starts. Also of version 0: an engine that survived a restart may hold later
        weights."""
        weights = WeightVersion(step)
        if self.config.loads_weights:
            weights = self._with_probe(self.publisher.offer(step))
        if self.rank == 0:
            self._call(self.task.pipeline.begin.remote(weights, self.task.table))
        torch.distributed.barrier()
        return weights

    def _with_probe(self, weights: WeightVersion) -> WeightVersion:
        return replace(weights, probe=make_probe(self.engine, self.config, self.task.folder, self.table, self.device))

    def _next_batch(self, step: int) -> list[tuple[EncodedRow, list[Any]]]:
        """This rank's rows, each with its sample in a list, which is empty where nobody samples it; where this rank is
        the teacher it has what `BaseTeacher.score` takes. Samples that went down with a node are asked for again."""
        while True:
            batch = self._call(self.task.pipeline.next_batch.remote(step, self.rank, self.ranks))
            rows, lost = [], []
            # Rows of a rollout batch have one reference where nobody has scored them yet.
            fetch = self._call if self.teacher is None else cache(self._call)
            for info, refs, row in batch:
                try:
                    found = [fetch(ref) for ref in refs]
                    rows.append(
                        (self.table[row], [Unscored(info.sample_id, f) for f in found] if self.teacher else found)
                    )
                except ray.exceptions.OwnerDiedError:
                    # The pipeline is gone, and with it every reference: a matter for a restart.
                    raise
                except ray.exceptions.ObjectLostError:
                    lost.append(row)
            if not lost:
                return rows
            self._call(self.task.pipeline.lost.remote(step, lost))

    def _micro_batches(self, rows: list[tuple[EncodedRow, list[Sample]]], *, rehearsal: bool) -> list[MicroBatch]:
        """Those of the rehearsal rows, or of the others; as many on every rank, so that collectives match."""
        scored = self.config.uses_rollouts if rehearsal else self.config.uses_distillation
        mine = [(row, samples) for row, samples in rows if row.rehearses == rehearsal]
        batches = make_micro_batches(
            [row for row, _ in mine],
            [sample for _, (sample,) in mine] if scored else None,
            total=int(self._sum([float(len(mine))])[0]),
            tokens=self.config.learner.max_tokens_per_microbatch,
            share_prompt=self.share_prompt,
        )
        empty = empty_micro_batch(self.kept if scored else None)
        return batches + [empty] * (self.most(len(batches)) - len(batches))

    def _set_learning_rate(self, step: int) -> float:
        lr = learning_rate(self.config.learner, step, self.task.order.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _reduced(self, step: int, sums: list[float]) -> list[float]:
        """The losses of all ranks; between the forward and the backward pass."""
        announce(self.name, "backward", step)
        return self._sum(sums)

    def _weights(self, version: int) -> WeightVersion:
        """The model's weights, for the rollout actors; the last ones for the export, which reads the object store."""
        steps = self.task.order.steps
        asked_for = version == steps or (self.config.evaluates(version, steps) and not self.config.uses_rollouts)
        if asked_for and not self.config.swaps_adapters:
            return self.publisher.pack(version)
        if not asked_for and not (self.config.uses_rollouts and self.config.loads_weights):
            return WeightVersion(version)
        weights = self.publisher.publish(version)
        if not self.probes_next:
            return weights
        self.probes_next = False
        return self._with_probe(weights)

    def _metrics(self, losses: StepLosses, batches: list[MicroBatch]) -> dict[str, Any]:
        """The learners' part of a step's metrics."""
        masses, tokens = self.student.topk_mass, sum(batch.tokens for batch in batches)
        mass_sum, mass_count, all_tokens = self._sum(
            [sum(mass * count for mass, count in masses), float(sum(count for _, count in masses)), float(tokens)]
        )
        rehearsal: dict[str, float | None] = {}
        if self.rehearses and self.config.uses_rollouts:
            rehearsal = {"rehearsal_kl": losses.rehearsal, "drift": losses.drift}
        elif self.rehearses:
            rehearsal = {"rehearsal_ce": losses.rehearsal}
        if isinstance(self.balancer, BudgetBalancer):
            rehearsal["drift_mean"] = self.balancer.mean
        return {
            "loss": losses.loss,
            "sft_loss": losses.sft,
            "kl_loss": losses.kl,
            "lambda": losses.weight,
            "ce_kl_ratio": losses.ce_kl_ratio,
            "student_mass": mass_sum / mass_count if mass_count else None,
            "tokens": int(all_tokens),
            "grad_norm": float(self.engine.get_global_grad_norm()),
            "temperature": self.config.distill.temperature if self.config.uses_rollouts else None,
            **rehearsal,
        }

    def _evaluate(self, weights: WeightVersion) -> bool:
        """Wait for the evaluation of these weights, if it is due, and keep them where they are the best so far. Returns
        whether training ends with them."""
        version, pipeline = weights.version, self.task.pipeline
        if not self.config.evaluates(version, self.task.order.steps):
            return False
        if self.drift is None:
            self.drift = DriftMeter(self.engine, self.config, self._call(pipeline.base_answers.remote()))
        drift = self.drift.measure()
        found = pipeline.evaluated.remote(version, self.rank, drift if self.rank == 0 else None)
        self.verdict = self._call(found)
        if self.verdict.keeps is not None:
            self._export(self._packed(weights), self.verdict.keeps)
            if self.rank == 0:
                self._call(pipeline.prune.remote(version))
        return self.verdict.stops

    def _packed(self, weights: WeightVersion) -> WeightVersion:
        """The whole weights that the engine has, in the object store."""
        whole = self.publisher.push is None and not self.config.swaps_adapters
        return weights if whole else self.publisher.pack(weights.version)

    def _finish(self, weights: WeightVersion) -> None:
        """Write `model/`: of these weights, or of the best evaluation's."""
        if self.config.eval.keep is not Keep.best:
            packed = self._packed(weights) if self.verdict or self.config.swaps_adapters else weights
            self._export(packed, str(Path(self.task.run_dir) / "model"))
        elif self.rank == 0:
            self._call(self.task.pipeline.adopt.remote(self._trained()))

    def _trained(self) -> Trained:
        """What the model at the end is of."""
        if (verdict := self.verdict) is None:
            return self.task.trained
        return replace(self.task.trained, weights_of=verdict.weights_of, why=verdict.why)

    def _export(self, weights: WeightVersion, target: str) -> None:
        """Write a model on the run folder's node, from the object store; the store forgets our puts when we end. The
        adapter is that of the weights that the engine has, which these must be."""
        adapter = None
        if self.config.learner.lora.rank:
            tensors = dict(adapter_tensors(self.student.model, self.config.learner.zero_stage))
            if self.rank == 0:
                base = models.resolve(models.split(self.task.folder)[0], self.config.model)
                adapter = adapter_files(self.student.model, tensors, base)
        if self.rank == 0:
            task = export_model.options(num_cpus=0, **on_node(self.task.node))
            written = task.remote(self.config.model, self.task.folder, weights, target, self._trained(), adapter)
            # Not longer than the other ranks wait.
            self._call(written, "the export of the model", self.config.learner.timeout)
        torch.distributed.barrier()

    def _may_share(self) -> bool:
        def mean(error: float) -> float:
            return self._sum([error])[0] / self.ranks

        may, notice = may_share_prompts(self.engine, self.config, self.table, self.device, mean)
        if notice and self.rank == 0:
            self._call(self.task.pipeline.notice.remote(notice))
        return may

    def _call(self, ref: Any, what: str = "the pipeline actor", limit: float | None = None) -> Any:
        """The value of a remote call. The pipeline's own limit is `learner.timeout`, and its message says more."""
        limit = limit or PATIENCE * self.config.learner.timeout
        try:
            return ray.get(ref, timeout=limit)
        except ray.exceptions.GetTimeoutError as error:
            raise RaftError(f"{self.name} on {here()}: {what} has not answered for {limit:g} s") from error

    def most(self, count: int) -> int:
        """The largest of all ranks' counts."""
        found = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        return int(found)

    def _sum(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(v) for v in total]
