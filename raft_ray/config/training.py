"""Sections of stage 2: `rollout`, `teacher`, `learner`, `distill` and `sync`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """What stage 2 trains (`distill.method`)."""

    sft = "sft"
    """Cross-entropy on the gold answers: no rollouts, no teacher."""
    sdft = "sdft"
    """Cross-entropy on the model's own accepted rewrites (stage 1 without fusion): no rollouts, no teacher."""
    opd = "opd"
    """On-policy distillation: as `raft`, but the teacher does not see the answer."""
    raft = "raft"
    """Cross-entropy on the fused answers plus answer-conditioned on-policy distillation."""


class Target(StrEnum):
    """Which answer the cross-entropy is taken on (`distill.target`)."""

    auto = "auto"
    """The method's own: `sft` gold, `sdft` rewrite, `opd` and `raft` fused."""
    gold = "gold"
    rewrite = "rewrite"
    fused = "fused"


class Balance(StrEnum):
    """Where λ of `L = L_SFT + λ L_KL` comes from (`distill.balance`)."""

    ema = "ema"
    """Eqs. 11-12: the ratio of the two losses' bias-corrected moving averages."""
    fixed = "fixed"
    """`distill.fixed_lambda`."""


class OnLongReference(StrEnum):
    """What happens when the teacher's prompt does not fit the context (`teacher.on_long_reference`)."""

    error = "error"
    """The row is refused with its length (then `data.on_bad_row` decides)."""
    shorten = "shorten"
    """The reference is shortened from its own end until the prompt fits; the question is never cut."""


class Graphs(StrEnum):
    """How λ, which needs the whole batch's losses, meets gradient accumulation (`learner.graphs`)."""

    two_pass = "two_pass"
    """Forward every micro-batch without a graph for its losses, then again with one: least memory."""
    keep_graph = "keep_graph"
    """Keep the graphs of all micro-batches until λ is known: fastest, memory grows with the batch."""


class Schedule(StrEnum):
    """The learning rate after the warm-up (`learner.schedule`)."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class SyncBackend(StrEnum):
    """How new weights reach the rollout actors (`sync.backend`)."""

    object_store = "object_store"
    """Ray's object store, through an engine registered with vLLM's weight transfer: any machine."""
    nccl = "nccl"
    """vLLM's NCCL broadcast from the first learner to every engine: each on whole GPUs of its own."""
    ipc = "ipc"
    """vLLM's CUDA IPC: every engine shares a GPU, and so its memory, with a learner."""


@dataclass
class RolloutConfig:
    actors: int = 1
    """Rollout actors (vLLM engines); independent of the learners. `raft-ray scale` changes it while a run goes on."""
    min_actors: int | None = None
    """With `max_actors`: actors come while learners wait and go while rollouts wait; none keeps `actors`."""
    max_actors: int | None = None
    chunk_rows: int | None = None
    """Rows a call of an engine; none cuts a step's rows evenly over the actors. A fixed number makes the samples
    independent of the number of actors."""
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    num_cpus: float = 1
    num_gpus: float = 0
    threads: int | None = None
    """Torch threads of an engine on the CPU; none takes all cores while `sync.max_staleness=0`, else a fair share."""
    tensor_parallel: int = 1
    kv_cache_gib: float = 1.0
    """KV cache of a CPU engine."""
    gpu_memory_utilization: float = 0.85
    timeout: float = 600.0
    """Longest wait for one chunk of rollouts, and for an engine's start."""
    max_restarts: int = 10
    """Restarts of each actor; one that has used them up is given up, and the run with the last of them."""
    tries: int = 2
    """Engines that may die on a chunk before its rows go on one by one; the next death on such a row sets it aside
    (`set_aside.jsonl`) and the run goes on without it."""


@dataclass
class TeacherConfig:
    actors: int = 1
    path: str | None = None
    """Another frozen teacher with the same vocabulary; none takes `model.path` (the paper's choice)."""
    template: str = "teacher"
    """A prompt file: a name under `configs/prompts/`, or a path. Fields: `{prompt}` `{answer}`."""
    on_long_reference: OnLongReference = OnLongReference.error
    tokens: int = 4096
    """Tokens a forward pass (padded)."""
    num_cpus: float = 1
    num_gpus: float = 0
    threads: int | None = None
    timeout: float = 600.0
    """Longest wait for the scoring of one chunk, and for the model's start."""
    max_restarts: int = 10
    """Restarts of each actor."""


@dataclass
class LearnerConfig:
    num_workers: int = 1
    """Data-parallel ranks (Ray Train workers)."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage 0-3; a resumed run keeps it, but may change `learner.num_workers`. Stage 0 would add
    gradients up in half precision, so it takes `model.dtype=float32`."""
    global_batch_size: int = 16
    """Rows a step, over all ranks."""
    lr: float = 5e-6
    epochs: int = 3
    max_steps: int | None = None
    """Stop after so many steps, even if `epochs` would go on."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    warmup_steps: int = 0
    schedule: Schedule = Schedule.constant
    max_tokens_per_microbatch: int = 4096
    """Tokens a micro-batch (padded)."""
    share_prompt: bool | None = None
    """Answer and response of a row share one pass over the prompt: less work. None: where the model is shown, at the
    start and on the longest row, to compute the same then; true refuses a model that does not."""
    dropout: bool = False
    """Keep the dropout that the model's own config has. Off, a step's losses are functions of weights and rows."""
    graphs: Graphs = Graphs.two_pass
    gradient_checkpointing: bool = False
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 keeps the last step's only."""
    keep: int = 2
    """Checkpoints kept: the last ones."""
    max_restarts: int = 2
    """Restarts of the worker group, and of the pipeline actor, after a death; both from the last checkpoint."""
    num_cpus: float = 1
    num_gpus: float = 0
    threads: int | None = None
    timeout: float = 1800.0
    """Longest wait for a step's data."""


@dataclass
class DistillConfig:
    method: Method = Method.raft
    target: Target = Target.auto
    temperature: float = 1.5
    """T of Eqs. 8-10."""
    top_k: int = 512
    """K: how many of the teacher's tokens carry the target."""
    balance: Balance = Balance.ema
    ema_beta: float = 0.9
    fixed_lambda: float = 1.0
    """λ of `distill.balance=fixed`; 0 trains without distillation."""
    max_lambda: float | None = None
    """Cap on λ: a student close to its teacher has a KL near 0, and the ratio explodes."""


@dataclass
class SyncConfig:
    max_staleness: int = 0
    """Versions that a trajectory may be behind the step that trains on it; 0 is strictly on-policy."""
    backend: SyncBackend = SyncBackend.object_store
    checksum: bool = True
    """Compare the engine's weights with the learner's after every update."""
    in_flight: bool = False
    """Rollout actors take up new weights in the middle of a chunk: vLLM pauses, keeps what it is writing, goes on.
    Fresher samples for `max_staleness` of 1 and more; each trajectory records which tokens came from which version."""
    timeout: float = 300.0
