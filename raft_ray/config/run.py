"""Sections that belong to a run as a whole: `run`, `model` and `data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from raft_ray.config.kinds import NonNegativeInt, PositiveInt


class Dtype(StrEnum):
    """Precision (`model.dtype`)."""

    auto = "auto"
    """bfloat16 on GPUs and on CPUs that compute in it, else float32; decided when the config is read."""
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class OnBadRow(StrEnum):
    """What happens when a data file has rows that cannot be used (`data.on_bad_row`)."""

    error = "error"
    """Stop before anything starts, listing the bad rows with their line numbers."""
    skip = "skip"
    """Leave them out, and list them in the log and in `bad_rows.jsonl` of the run folder. A row whose fused answer or
    rewrite does not fit, which is known after stage 1, trains on its gold answer and is listed in `gold_rows.jsonl`."""


class Tracker(StrEnum):
    """Where the metrics of a training are shown (`run.trackers`)."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"
    trackio = "trackio"
    swanlab = "swanlab"


@dataclass
class RunConfig:
    dir: str = "runs/raft"
    """The run folder. Must be new, or `run.resume=true`."""
    seed: NonNegativeInt = 0
    """Seeds the order of rows, sampling and evaluation subsets."""
    resume: bool = False
    """Go on from the last checkpoint of `run.dir` (`--resume`)."""
    allow_changes: bool = False
    """Go on from a checkpoint although keys that decide the model, such as `learner.lr`, have changed since; each is
    named, and noted in `events.jsonl`. Off: they are refused."""
    storage: str | None = None
    """Where checkpoints go: a folder or URI (`s3://`, `gs://`, `abfs://`, `hdfs://`, `file:///`) that every learner's
    node reaches, and that runs may share; none takes the run folder."""
    trackers: list[Tracker] = field(default_factory=lambda: [Tracker.tensorboard])
    """What shows `metrics.jsonl` as it grows: `tensorboard`, `wandb`, `mlflow`, `trackio`, `swanlab`; each but the
    first is an extra of the package (`pip install 'raft-ray[wandb]'`). Keys, servers and offline modes come from the
    trackers' own environment variables, such as `WANDB_API_KEY` or `WANDB_MODE=offline`."""
    baselines: list[str] = field(default_factory=list)
    """Other methods that `run` trains on the same data, for the report, such as `[sft]`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Overrides a baseline needs, by method: `{sft: {learner: {lr: 1e-4}}}`; kept for when it is asked for."""
    ray_address: str | None = None
    """Cluster to join (`auto`, `ray://...`); none joins the job's own cluster, or starts a local Ray outside a job."""
    local_cpus: PositiveInt | None = None
    """Logical CPUs of a local Ray; none takes what the roles ask for, at least the machine's own."""


@dataclass
class ModelConfig:
    path: str = "embedded:smollm2-135m-instruct"
    """A Hugging Face folder or name; `embedded:smollm2-135m-instruct` (needs no hub); `random:tiny` (for tests)."""
    adapter: str | None = None
    """A peft LoRA folder on `model.path`, to go on from; base and adapter together are the original model, teacher and
    base of all measures. With `learner.lora.rank` at its rank the same A and B train on, and keys of `learner.lora`
    left at their defaults are the adapter's; with 0 it is merged and all weights train. A `model.path` that is such a
    folder means the base that it names, with it. Merged models are kept in `~/.cache/raft-ray/models`."""
    dtype: Dtype = Dtype.bfloat16
    """Of rollout and teacher weights; the learner computes in it with fp32 master weights."""
    context: PositiveInt | None = None
    """Longest prompt + response; none takes the model's own limit."""
    thinking: bool = False
    """The model thinks before it answers, where its chat template knows that choice: in rollouts, teacher, stage 1 and
    evaluation, and by default once it is exported. What it thought is never scored. Rows without thinking train an
    empty block."""
    date: str | None = None
    """The date that chat templates print, YYYY-MM-DD. None takes the day on which the config is read; a resumed run
    keeps its own."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along."""
    allow_pickle: bool = False
    """Load `.bin`/`.pt` weights, which can run code when they are opened; off: safetensors only."""


@dataclass
class ColumnsConfig:
    """What the fields of a row are called."""

    prompt: str | None = None
    """The question. None reads `prompt`, `question` or `instruction`."""
    input: str | None = None
    """Text that follows the question after a blank line. None reads `input` below an `instruction`."""
    answer: str | None = None
    """The gold answer. None reads `answer`, `output` or `completion`."""
    answers: str = "answers"
    """Optional list of answers that all count as right in the evaluation."""
    choices: str = "choices"
    """Optional list of choices of a test question, the answer among them."""
    messages: str | None = None
    """Rows with this field are chats: the last assistant message is the answer, what precedes it the prompt. None reads
    `messages` or `conversations`."""


@dataclass
class DataConfig:
    train: str | list[str] = "???"
    """A file (`.jsonl`, `.json`, `.csv`, `.tsv`, also `.gz` or `.zst`; `.parquet`, `.arrow`), a glob, a folder, a
    Hugging Face data set (`owner/name` or `owner/name:configuration`), `domain:NAME` or `domain:NAME:COUNT` (chemistry,
    geography), or a list of these. A refined file or folder trains as it is."""
    test: str | None = None
    """The domain's test questions, in the same formats; none leaves domain accuracy out."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    train_split: str = "train"
    """Split of a Hugging Face dataset."""
    test_split: str = "test"
    streaming: bool = False
    """Read a Hugging Face data set over the network as it is needed, without a copy in the cache of `datasets`."""
    on_bad_row: OnBadRow = OnBadRow.error
    max_prompt: PositiveInt = 1024
    """A longer prompt (chat template included) is a bad row."""
    max_answer: PositiveInt = 1024
    """A row with a longer answer, among `answers` and `choices` too, is a bad row."""
    limit: PositiveInt | None = None
    """Take only the first rows of the training set."""
