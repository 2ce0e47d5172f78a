"""The configuration of a run: one dataclass a section, with every key's meaning beside it.

Knows nothing about files, Ray or models: `raft_ray.settings` reads presets and overrides into these
classes and checks them. Importing this module loads OmegaConf and the standard library only.

Lengths are tokens, times are seconds, memory is GiB, unless a key says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


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


class OnBadRow(StrEnum):
    """What happens when a data file has rows that cannot be used (`data.on_bad_row`)."""

    error = "error"
    """Stop before anything starts, listing the bad rows with their line numbers."""
    skip = "skip"
    """Leave them out, and list them in the log and in `bad_rows.jsonl` of the run folder."""


class OnLongReference(StrEnum):
    """What happens when the teacher's prompt does not fit the context (`teacher.on_long_reference`)."""

    error = "error"
    """The row is refused with its length (then `data.on_bad_row` decides)."""
    shorten = "shorten"
    """The reference is shortened from its own end until the prompt fits; the question is never cut."""


class Graphs(StrEnum):
    """How λ, which needs the whole batch's losses, meets gradient accumulation (`learner.graphs`)."""

    recompute = "recompute"
    """Forward every micro-batch without a graph for its losses, then again with one: least memory."""
    hold = "hold"
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


class Dtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class SimilarityOn(StrEnum):
    """What the semantic filter embeds (`refine.similarity_on`)."""

    answer = "answer"
    """The answers alone (Eq. 2)."""
    question_answer = "question_answer"
    """Question and answer together: needed for terse gold answers, whose own embedding says little."""


class DomainMetric(StrEnum):
    """Which measure is called domain accuracy (`eval.domain_metric`); all that apply are in `eval.json`."""

    auto = "auto"
    """`choice` where every test row names choices, else `contains`."""
    contains = "contains"
    """The response contains one of the right answers."""
    exact = "exact"
    """The response is one of the right answers, apart from case, punctuation and articles."""
    choice = "choice"
    """The right choice is the most likely response."""
    letter = "letter"
    """The letter of the right choice is the most likely response to the question with lettered choices."""
    judged = "judged"
    """More than half of `eval.judges` say that the response is right."""


@dataclass
class RunConfig:
    dir: str = "runs/raft"
    """The run folder. Must be new, or `run.resume=true`."""
    seed: int = 0
    """Seeds the order of rows, sampling and evaluation subsets."""
    resume: bool = False
    """Go on from the last checkpoint of `run.dir` (`--resume`)."""
    storage: str | None = None
    """Where checkpoints go: a folder or URI (`s3://`, `gs://`, `abfs://`, `hdfs://`, `file:///`) that every learner's
    node reaches, and that runs may share; none takes the run folder."""
    baselines: list[str] = field(default_factory=list)
    """Other methods that `run` trains on the same data, for the report, such as `[sft]`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Overrides a baseline needs, by method: `{sft: {learner: {lr: 1e-4}}}`; kept for when it is asked for."""
    ray_address: str | None = None
    """Cluster to join (`auto`, `ray://...`); none joins the job's own cluster, or starts a local Ray outside a job."""
    local_cpus: int | None = None
    """Logical CPUs of a local Ray; none takes what the roles ask for, at least the machine's own."""


@dataclass
class ModelConfig:
    path: str = "embedded:smollm2-135m-instruct"
    """A Hugging Face folder or name; `embedded:smollm2-135m-instruct` (needs no hub); `random:tiny` (for tests)."""
    dtype: Dtype = Dtype.bfloat16
    """Of rollout and teacher weights; the learner computes in it with fp32 master weights."""
    context: int | None = None
    """Longest prompt + response; none takes the model's own limit."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along."""
    allow_pickle: bool = False
    """Load `.bin`/`.pt` weights, which can run code when they are opened; off: safetensors only."""


@dataclass
class DataConfig:
    train: str = "???"
    """A `.jsonl` or `.parquet` file; a Hugging Face data set (`owner/name` or `owner/name:configuration`) or a folder
    of one; or `domain:NAME` or `domain:NAME:COUNT` (chemistry, geography). A refined file or folder trains as it is."""
    test: str | None = None
    """The domain's test questions, in the same formats; none leaves domain accuracy out."""
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    answers_field: str = "answers"
    """Optional list of answers that all count as right in the evaluation."""
    choices_field: str = "choices"
    """Optional list of choices of a test question, the answer among them."""
    messages_field: str = "messages"
    """Rows with this field are chats: the last assistant message is the answer, what precedes it the prompt."""
    train_split: str = "train"
    """Split of a Hugging Face dataset."""
    test_split: str = "test"
    on_bad_row: OnBadRow = OnBadRow.error
    max_prompt: int = 1024
    """A longer prompt (chat template included) is a bad row."""
    max_answer: int = 1024
    """A longer answer is a bad row."""
    limit: int | None = None
    """Take only the first rows of the training set."""


@dataclass
class RefineModelConfig:
    """A model that stage 1 may use beside the original one: on engines here (`path`), or behind an endpoint
    (`base_url` and `model`)."""

    path: str | None = None
    """Hugging Face folder or name, as `model.path`: served by vLLM engines of this run."""
    actors: int = 1
    """Engines of a local model."""
    num_cpus: float = 1
    num_gpus: float = 0
    tensor_parallel: int = 1
    context: int | None = None
    base_url: str | None = None
    """An OpenAI-compatible endpoint, such as `http://localhost:8000/v1`."""
    model: str | None = None
    """The model's name at the endpoint."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key; the key itself stands in no config."""
    concurrency: int = 16
    """Requests to the endpoint at the same time, of each worker of stage 1."""
    timeout: float = 120.0
    """Longest wait for one answer of the endpoint."""
    retries: int = 5
    """Further tries after 429, 5xx, a cut connection or a time-out, with growing pauses."""
    input_cost: float = 0.0
    """Price of a million prompt tokens, in any currency: for the cost in the report."""
    output_cost: float = 0.0
    """Price of a million generated tokens."""


@dataclass
class RefineGuardsConfig:
    """From where on stage 1 refuses a rewrite or a fused answer, whatever its cosine to the gold answer."""

    repetition: float = 0.25
    """Share of words that may stand in a passage of four which the text had before, on top of the gold answer's own."""
    shortest: float = 0.2
    """Least length, as a share of the gold answer's words; of gold answers of 20 words and more."""
    longest: float = 5.0
    """Greatest length, in the gold answer's words, or in 20 words where it has fewer."""
    leaks: list[str] = field(
        default_factory=lambda: [
            "reference answer",
            "reference knowledge",
            "gold answer",
            "provided answer",
            "original answer",
            "rewritten answer",
            "in my own words",
            "in your own words",
            "as an AI language model",
        ]
    )
    """Phrases that talk of the task instead of answering, unless the row itself has them; beside the prompt's own."""
    language: float = 0.02
    """A text whose words make the language of question and gold answer less likely than this is in another one."""
    script: float = 0.3
    """Share of letters that may be of a script of which neither question nor gold answer has any."""


@dataclass
class RefineConfig:
    enabled: bool = True
    """Off: the data already holds the answers to train on."""
    tau: float = 0.8
    """Eq. 3: a rewrite below this cosine to the gold answer is dropped, and the row keeps the gold answer."""
    rewriter: str = "self"
    """Who rewrites: `self` is the original model (Eq. 1), or a name in `refine.models`."""
    fuser: str = "self"
    """Who fuses gold answer and rewrite (Eq. 4): `self`, a name in `refine.models`, or `none` (the accepted rewrite is
    the fused answer)."""
    judges: list[str] = field(default_factory=lambda: ["embedding", "key_facts"])
    """Who scores candidates in [0, 1], the mean counts: `embedding`, `key_facts`, `exact`, or a model: `self`, or a
    name in `refine.models`."""
    models: dict[str, RefineModelConfig] = field(default_factory=dict)
    """Models beside the original one, by names of your own, for the roles above."""
    embedder: str = "wordllama"
    """`wordllama`, or the name or folder of a sentence-transformers model."""
    similarity_on: SimilarityOn = SimilarityOn.answer
    require_key_facts: bool = True
    """Refuse a rewrite that loses the gold answer's numbers, names or terse content, whatever its cosine."""
    refuse_invented: bool = True
    """Refuse a rewrite with numbers or names that stand neither in the chat nor in the gold answer."""
    attempts: int = 1
    """Rewrites sampled at most, until one is accepted; the paper takes 1. Small models need more."""
    candidates: int = 2
    """Fused candidates a round."""
    rounds: int = 2
    """Rounds at most; the best mean score over all rounds wins."""
    stop_score: float = 0.8
    """Stop early once a candidate's mean score reaches this."""
    candidate_gold: bool = False
    """The gold answer takes part as a candidate."""
    candidate_rewrite: bool = True
    """The accepted rewrite takes part as a candidate."""
    temperature: float = 0.3
    fuse_temperature: float = 0.5
    max_new_tokens: int = 128
    rewrite_prompt: str = "rewrite"
    """A prompt file: a name under `configs/prompts/`, or a path. Fields: `{prompt}` `{answer}`."""
    fuse_prompt: str = "fuse"
    """A prompt file. Fields: `{prompt}` `{answer}` `{rewrite}`."""
    judge_prompt: str = "judge"
    """A prompt file, for judges that are models. Fields: `{prompt}` `{answer}` `{candidate}`."""
    guards: RefineGuardsConfig = field(default_factory=RefineGuardsConfig)
    gap: bool = True
    """Measure how likely the original model finds gold, rewritten and fused answers, for the report; a forward pass
    over each, by actors as section `teacher` describes them."""
    actors: int = 1
    """Engines with the original model; with their resources from section `rollout`."""
    workers: int = 2
    """Workers of each stage (rewriting, fusing), which do what is to be done around the engines' calls; more than
    engines keep these busy."""
    max_workers: int | None = None
    """Ray Data adds workers up to so many to a stage that batches wait for; none keeps `refine.workers`."""
    batch: int = 64
    """Rows a call of an engine. Part of what decides the texts: a call is sampled as a whole."""


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
    workers: int = 1
    """Data-parallel ranks (Ray Train workers)."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage 0-3; a resumed run keeps it, but may change `learner.workers`."""
    batch: int = 16
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
    tokens: int = 4096
    """Tokens a micro-batch (padded)."""
    share_prompt: bool = True
    """Answer and response of a row share one pass over the prompt: less work, the same losses; full attention only."""
    graphs: Graphs = Graphs.recompute
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


@dataclass
class EvalConfig:
    enabled: bool = True
    domain_rows: int | None = None
    """Test questions at most (a seeded subset); none takes all."""
    domain_max_new_tokens: int = 64
    domain_metric: DomainMetric = DomainMetric.auto
    ifeval_rows: int | None = None
    """IFEval prompts (a seeded subset); none takes all 541, 0 leaves IFEval out."""
    ifeval_max_new_tokens: int = 512
    mmlu: str | None = None
    """Folder with MMLU's questions, `test*` and `dev*` files in JSONL or Parquet; none leaves MMLU out."""
    mmlu_rows: int | None = None
    """MMLU questions (a seeded subset); none takes all."""
    mmlu_shots: list[int] = field(default_factory=lambda: [0, 5])
    """Examples in the prompt; each number is a measurement of its own."""
    general: str | None = None
    """Prompts for response length and drift: a file with `prompt` fields; none takes the 60 that are shipped."""
    general_rows: int | None = None
    general_max_new_tokens: int = 256
    judges: list[str] = field(default_factory=list)
    """Models that read the answers to domain and open questions: `self` (the original model), or names in
    `refine.models`; none leaves them out."""
    judge_prompt: str = "judge_domain"
    """A prompt file for the domain's answers. Fields: `{prompt}` `{answer}` `{candidate}`."""
    open: str | None = None
    """Open questions that only `eval.judges` can score: a JSONL file with `prompt` and perhaps `reference`, or of
    MT-Bench's form (`turns`); none leaves them out."""
    open_rows: int | None = None
    """Open questions at most (a seeded subset); none takes all."""
    open_max_new_tokens: int = 512
    """Of each turn."""
    open_prompt: str = "judge_open"
    """A prompt file for the answers to open questions. The same fields; `{prompt}` is the chat before the answer."""
    temperature: float = 0.0
    samples: int = 5
    """Answers of each method kept for the report."""


@dataclass
class CompareConfig:
    """`raft-ray compare`: what is trained on the same data, and evaluated on the same questions."""

    methods: list[str] = field(default_factory=lambda: ["sft", "sdft", "opd", "fapm", "raft"])
    """Rows of the comparison: methods, `fapm` (which prunes `sft`), and names that `compare.overrides` describes."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """`run.seed` of each training; stage 1 and the evaluation keep the run's own."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys by row: `{sft: {learner: {lr: 1e-4}}, fixed: {distill: {method: raft, balance: fixed}}}`. A row with keys of
    `refine` gets refined rows of its own; what models wrote before is not asked for again."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Values that every row is trained with in turn, `{learner.lr: [1e-4, 2e-4]}`: all are shown, and the one that does
    best on validation questions stands for the row."""
    validation: float = 0.5
    """Share of the test questions that the grid's values are chosen on; the others are reported. All without a grid."""
    sparsity: float = 0.9
    """Share of the fine-tuned weights that FAPM puts back to the original's."""


@dataclass
class Config:
    """All of a run. `raft-ray show-config PRESET` prints it with a preset's values."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
