"""Sections of what is measured: `eval` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from raft_ray.config.kinds import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
)


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


class Keep(StrEnum):
    """Which weights of a training become its model (`eval.keep`)."""

    last = "last"
    best = "best"
    """Those of the evaluation with the highest validation accuracy within `eval.max_drift`, the earliest of equals."""


@dataclass
class EvalConfig:
    enabled: bool = True
    domain_rows: PositiveInt | None = None
    """Test questions at most (a seeded subset); none takes all."""
    domain_max_new_tokens: PositiveInt = 64
    domain_metric: DomainMetric = DomainMetric.auto
    ifeval_rows: NonNegativeInt | None = None
    """IFEval prompts (a seeded subset); none takes all 541, 0 leaves IFEval out."""
    ifeval_max_new_tokens: PositiveInt = 512
    ifeval_samples: PositiveInt = 1
    """Answers to each IFEval prompt, whose mean counts. Several are sampled, each with its own seed, at
    `eval.temperature`, or at 0.7 where that is 0."""
    mmlu: str | None = None
    """Folder with MMLU's questions, `test*` and `dev*` files in JSONL or Parquet; none leaves MMLU out."""
    mmlu_rows: PositiveInt | None = None
    """MMLU questions (a seeded subset); none takes all."""
    mmlu_shots: list[int] = field(default_factory=lambda: [0, 5])
    """Examples in the prompt; each number is a measurement of its own."""
    general: str | None = None
    """Prompts for response length and drift: a file with `prompt` fields; none takes the 60 that are shipped."""
    general_rows: PositiveInt | None = None
    general_max_new_tokens: PositiveInt = 256
    judges: list[str] = field(default_factory=list)
    """Models that read the answers to domain and open questions: `self` (the original model), or names in
    `refine.models`; none leaves them out."""
    judge_prompt: str = "judge_domain"
    """A prompt file for the domain's answers. Fields: `{prompt}` `{answer}` `{candidate}`."""
    judge_max_new_tokens: PositiveInt = 256
    """Of a verdict, its reason (and any thinking) included. One that is cut off is no score but a failure."""
    open: str | None = None
    """Open questions that only `eval.judges` can score: a JSONL file with `prompt` and perhaps `reference`, or of
    MT-Bench's form (`turns`); none leaves them out."""
    open_rows: PositiveInt | None = None
    """Open questions at most (a seeded subset); none takes all."""
    open_max_new_tokens: PositiveInt = 512
    """Of each turn."""
    open_prompt: str = "judge_open"
    """A prompt file for the answers to open questions. The same fields; `{prompt}` is the chat before the answer."""
    temperature: NonNegativeFloat = 0.0
    samples: NonNegativeInt = 5
    """Answers of each method kept for the report."""
    every: NonNegativeInt = 0
    """Steps between evaluations while a method trains, beside one at its beginning and end: validation accuracy, and on
    `eval.general` drift and words, by greedy answers of the rollout actors; 0 makes none."""
    validation: str | None = None
    """Validation questions: a source as `data.test` is; none holds out rows of the training set."""
    validation_rows: PositiveInt = 64
    """Validation questions (a seeded subset). What the training set gives is not trained on."""
    validation_ifeval_rows: NonNegativeInt = 64
    """IFEval prompts that are asked while a method trains (a seeded subset); 0 leaves them out."""
    keep: Keep = Keep.last
    """Which weights become the model: the `last`, or the `best` of the evaluations while it trained."""
    max_drift: PositiveFloat | None = None
    """Drift in nats per token up to which an evaluation can be the best. Where none is within it, the one with the
    least drift counts."""
    patience: PositiveInt | None = None
    """Training ends after so many evaluations without a better one; none trains to the end."""


@dataclass
class CompareConfig:
    """`raft-ray compare`: what is trained on the same data, and evaluated on the same questions."""

    methods: list[str] = field(default_factory=lambda: ["sft", "sdft", "opd", "fapm", "raft"])
    """Rows of the comparison: methods, `fapm` (which prunes `sft`), `wise` (which interpolates it with the original),
    and names that `compare.overrides` describes."""
    models: dict[str, list[str]] = field(default_factory=dict)
    """Rows that were trained elsewhere and are measured beside the others, a folder or hub name per seed:
    `{trl: [models/trl-0, models/trl-1]}`. Only models with the parameters and the vocabulary of `model.path`, and peft
    adapters of it. With no methods they are compared alone, and nothing is trained."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """`run.seed` of each training; stage 1 and the evaluation keep the run's own."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys by row: `{sft: {learner: {lr: 1e-4}}, fixed: {distill: {method: raft, balance: fixed}}}`. A row with keys of
    `refine` gets refined rows of its own; what models wrote before is not asked for again."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Values that every row is trained with in turn, `{learner.lr: [1e-4, 2e-4]}`: all are shown, and the one that does
    best on validation questions stands for the row."""
    grid_seeds: PositiveInt | None = None
    """How many of the seeds train the whole grid and choose each row's point; the others train that point alone. None:
    all seeds train the whole grid."""
    validation: OpenFraction = 0.5
    """Share of the test questions that the grid's values are chosen on; the others are reported. All without a grid."""
    sparsity: Fraction = 0.9
    """Share of the fine-tuned weights that FAPM puts back to the original's."""
    alphas: list[Fraction] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    """α of `wise` (WiSE-FT, arXiv 2109.01903), `θ = (1-α) θ_original + α θ_sft`: each is a point, and one is chosen as
    those of `compare.grid` are."""
