"""Sections of stage 2: `rollout`, `teacher`, `learner`, `distill` and `sync`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from raft_ray.config.kinds import (
    DecayRate,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    ResourceUnits,
    ZeroStage,
)


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


class Loss(StrEnum):
    """What any method takes of the answers' tokens (`distill.loss`). The weights are constants for the gradient."""

    ce = "ce"
    """Cross-entropy, `-log p_t`."""
    dft = "dft"
    """DFT (arXiv 2508.05629): weighted by the token's own probability, `-p_t log p_t`."""
    eaft = "eaft"
    """EAFT (arXiv 2601.02151): weighted by the entropy of the student's 20 likeliest tokens, renormalised, over its
    largest value: `-H_t / ln 20 · log p_t`. (The authors' code divides by 3.)"""


class Balance(StrEnum):
    """Where λ of `L = L_SFT + λ L_KL` comes from (`distill.balance`)."""

    ema = "ema"
    """Eqs. 11-12: the ratio of the two losses' bias-corrected moving averages."""
    fixed = "fixed"
    """`distill.fixed_lambda`."""
    budget = "budget"
    """`distill.drift_budget`: `L = L_SFT + λ (L_KL + w L_rehearsal)`, λ steered by the drift of the steps before."""


class RehearsalKind(StrEnum):
    """Whose answers to general prompts are learned from, and how (`distill.rehearsal.kind`)."""

    rollout = "rollout"
    """The student's: the KL of the original model's next tokens to the student's, on-policy."""
    replay = "replay"
    """The original model's, written once into `rehearsal.jsonl` at `rollout.temperature`: cross-entropy, without
    rollouts or a teacher. For methods that have none either."""
    replay_kl = "replay_kl"
    """The same answers, off-policy: the KL of the original model's next tokens to the student's on them."""


class TeacherPlace(StrEnum):
    """Which processes hold the teacher (`teacher.place`)."""

    own = "own"
    """Teacher actors, each with a copy of the model; they score while learners train."""
    learner = "learner"
    """The learners, for an adapter (`learner.lora.rank`): its frozen base is the teacher. Each rank scores its own rows
    between sampling and training. No other copy of the model, less overlap."""


class OnLongReference(StrEnum):
    """What happens when the teacher's prompt does not fit the context (`teacher.on_long_reference`)."""

    error = "error"
    """The row is refused with its length (then `data.on_bad_row` decides)."""
    shorten = "shorten"
    """The reference is shortened from its own end until the prompt fits; the question is never cut."""


class Graphs(StrEnum):
    """How λ, which needs the whole batch's losses, meets gradient accumulation (`learner.graphs`)."""

    two_pass = "two_pass"
    """Forward every micro-batch without a graph for its losses, then again with one: least memory. Once is enough
    where λ is known before (`distill.balance=budget`)."""
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


class SyncAdapter(StrEnum):
    """What of a LoRA adapter reaches the rollout actors (`sync.adapter`)."""

    merged = "merged"
    """Whole weights, `W + s B A`."""
    hot = "hot"
    """A and B alone, which vLLM swaps in place; W comes once. At rank 16 that is 3.6 % of the bytes for 135 M
    parameters and under 2 % from 0.5 B on, but engines compute more for each token: on the CPU, where vLLM's adapters
    are slow, one of 135 M read prompts ten times slower. Object store only, no DoRA."""


@dataclass
class RolloutConfig:
    actors: PositiveInt = 1
    """Rollout actors (vLLM engines); independent of the learners. `raft-ray scale` changes it while a run goes on."""
    min_actors: PositiveInt | None = None
    """With `max_actors`: actors come while learners wait and go while rollouts wait; none keeps `actors`."""
    max_actors: PositiveInt | None = None
    batch_rows: PositiveInt | None = None
    """Rows per call of an engine; none cuts a step's rows evenly over the actors. A fixed number makes the samples
    independent of the number of actors."""
    max_new_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 1.0
    top_p: PositiveFraction = 1.0
    num_cpus: ResourceUnits = 1.0
    num_gpus: ResourceUnits = 0.0
    threads: PositiveInt | None = None
    """Torch threads of an engine on the CPU; none takes all cores while `sync.max_staleness=0`, else a fair share."""
    tensor_parallel: PositiveInt = 1
    kv_cache_gib: PositiveFloat = 1.0
    """KV cache of a CPU engine."""
    gpu_memory_utilization: PositiveFraction = 0.85
    timeout: PositiveFloat = 600.0
    """Longest wait for one rollout batch, and for an engine's start."""
    max_restarts: NonNegativeInt = 10
    """Restarts of each actor; one that has used them up is given up, and the run with the last of them."""
    max_failures: PositiveInt = 2
    """Engines that may die on a rollout batch before its rows go on one by one; the next death on such a row
    quarantines it (`quarantined.jsonl`), and the run goes on without it."""


@dataclass
class TeacherConfig:
    place: TeacherPlace = TeacherPlace.own
    """Where the teacher is: `own` actors, or the `learner`s, with their adapter off (`learner.lora.rank`). The latter
    take no `actors`, `max_restarts` or other `path`; `template`, `on_long_reference` and `tokens` hold for both, while
    `num_cpus`, `num_gpus`, `threads` and `timeout` are then for the evaluation and stage 1's gap alone."""
    actors: PositiveInt = 1
    path: str | None = None
    """Another frozen teacher with the same vocabulary; none takes the original model (the paper's choice), which is
    `model.path` with `model.adapter`."""
    template: str = "teacher"
    """A prompt file: a name under `configs/prompts/`, or a path. Fields: `{prompt}` `{answer}`."""
    on_long_reference: OnLongReference = OnLongReference.error
    tokens: PositiveInt = 4096
    """Tokens a forward pass (padded)."""
    num_cpus: ResourceUnits = 1.0
    num_gpus: ResourceUnits = 0.0
    threads: PositiveInt | None = None
    timeout: PositiveFloat = 600.0
    """Longest wait for the scoring of one rollout batch, and for the model's start."""
    max_restarts: NonNegativeInt = 10
    """Restarts of each actor."""


@dataclass
class LoraConfig:
    """An adapter of low rank is trained instead of the weights: `W + s B A`, with frozen W (peft)."""

    rank: NonNegativeInt = 0
    """Rows of A and columns of B; 0 trains all weights. An adapter wants about ten times the `learner.lr` of these."""
    alpha: PositiveInt = 32
    """s = alpha / rank."""
    dropout: DecayRate = 0.0
    """Share of an adapter's inputs that is dropped in training. Above 0 losses depend on how rows are packed, as with
    `learner.dropout`."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, which leaves out the output head, or ends of the names of linear layers, such as
    `[q_proj, v_proj]`. Where a model packs its experts into one tensor, they and its other MLPs have none."""
    rslora: bool = False
    """s = alpha / √rank (arXiv 2312.03732)."""
    dora: bool = False
    """Train the length of each row of a weight apart from its direction (arXiv 2402.09353). vLLM cannot serve such an
    adapter apart from its base."""


@dataclass
class LearnerConfig:
    num_workers: PositiveInt = 1
    """Data-parallel ranks (Ray Train workers)."""
    zero_stage: ZeroStage = 1
    """DeepSpeed ZeRO stage 0-3; a resumed run keeps it, but may change `learner.num_workers`. Stage 0 would add
    gradients up in half precision, so it takes `model.dtype=float32`."""
    global_batch_size: PositiveInt = 16
    """Rows per step, over all ranks."""
    lr: PositiveFloat = 5e-6
    epochs: PositiveInt = 3
    max_steps: PositiveInt | None = None
    """Stop after so many steps, even if `epochs` would go on."""
    weight_decay: NonNegativeFloat = 0.01
    beta1: DecayRate = 0.9
    beta2: DecayRate = 0.999
    grad_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    warmup_steps: NonNegativeInt = 0
    schedule: Schedule = Schedule.constant
    max_tokens_per_microbatch: PositiveInt = 4096
    """Tokens per micro-batch (padded)."""
    share_prompt: bool | None = None
    """Answer and response of a row share one pass over the prompt: less work. None: where the model is shown, at the
    start and on the longest row, to compute the same then; true refuses a model that does not."""
    dropout: bool = False
    """Keep the dropout that the model's own config has. Off, a step's losses are functions of weights and rows."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    graphs: Graphs = Graphs.two_pass
    gradient_checkpointing: bool = False
    checkpoint_every: NonNegativeInt = 0
    """Steps between checkpoints; 0 keeps the last step's only."""
    keep: PositiveInt = 2
    """Checkpoints kept: the last ones."""
    max_restarts: NonNegativeInt = 2
    """Restarts of the worker group, and of the pipeline actor, after a death; both from the last checkpoint."""
    num_cpus: ResourceUnits = 1.0
    num_gpus: ResourceUnits = 0.0
    threads: PositiveInt | None = None
    timeout: PositiveFloat = 1800.0
    """Longest wait for a step's data."""


@dataclass
class RehearsalConfig:
    """Rows of a second kind: general prompts, to which the student's answers shall stay as they were."""

    rows: NonNegativeInt = 0
    """General prompts per step, beside the rows of `learner.global_batch_size`. The student answers them and the
    original model, which reads the same prompt, scores the answers: KL alone, with any method. 0 is off."""
    kind: RehearsalKind = RehearsalKind.rollout
    prompts: str = "self"
    """`self`: the original model writes them, once, into `rehearsal.jsonl` of the run folder. Else a source of the
    kinds that `data.train` takes, with fields of the usual names: the prompts of its first `count` rows."""
    count: PositiveInt = 1000
    """Prompts to have; each is answered once before any is answered again."""
    forms: Fraction = 0.5
    """Share of the prompts that end with a wish for a form: a list, JSON, a title, letter case, length, language, .."""
    max_new_tokens: PositiveInt = 128
    """Of an answer: general ones are longer than most of a domain's."""
    weight: PositiveFloat = 2.0
    """w of `L = L_SFT + λ L_KL + w L_rehearsal`, which does not fall with λ as the domain is learned."""


@dataclass
class DistillConfig:
    method: Method = Method.raft
    target: Target = Target.auto
    loss: Loss = Loss.ce
    temperature: PositiveFloat = 1.5
    """T of Eqs. 8-10."""
    top_k: PositiveInt = 512
    """K: how many of the teacher's tokens carry the target."""
    balance: Balance = Balance.ema
    drift_budget: PositiveFloat = 0.05
    """Of `distill.balance=budget`, with any method and rehearsal: how far the student may go from the original model,
    as their KL on rehearsal rows at temperature 1, in nats per token. λ grows while a moving average is above it."""
    ema_beta: DecayRate = 0.9
    """β of the moving averages, of the losses or of the drift."""
    fixed_lambda: NonNegativeFloat = 1.0
    """λ of `distill.balance=fixed`; 0 trains without distillation."""
    max_lambda: PositiveFloat | None = None
    """Cap on λ: a student close to its teacher has a KL near 0, and the ratio explodes. With a drift budget none is
    1000."""
    off_policy: bool = False
    """The KL of `opd` is taken on the answer's own tokens, which nobody samples. On gold answers, with `loss=dft` and
    a fixed λ, it is ASFT (arXiv 2509.23753; the authors' code has λ = 0.1, T = 1 and the whole vocabulary)."""
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)


@dataclass
class SyncConfig:
    max_staleness: NonNegativeInt = 0
    """Versions that a trajectory may be behind the step that trains on it; 0 is strictly on-policy."""
    backend: SyncBackend = SyncBackend.object_store
    checksum: bool = True
    """Compare the engine's weights with the learner's after every update."""
    in_flight: bool = False
    """Rollout actors take up new weights in the middle of a batch: vLLM pauses, keeps what it is writing, goes on.
    Fresher samples for `max_staleness` of 1 and more; each trajectory records which tokens came from which version."""
    adapter: SyncAdapter = SyncAdapter.merged
    """What of a LoRA adapter (`learner.lora`) the rollout actors are given."""
    timeout: PositiveFloat = 300.0
