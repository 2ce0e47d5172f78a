"""Section `refine`: stage 1, its models and guards."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from raft_ray.config.kinds import (
    EntryName,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ResourceUnits,
)


class SimilarityOn(StrEnum):
    """What the semantic filter embeds (`refine.similarity_on`)."""

    answer = "answer"
    """The answers alone (Eq. 2)."""
    question_answer = "question_answer"
    """Question and answer together: needed for terse gold answers, whose own embedding says little."""


@dataclass
class RefineModelConfig:
    """A model that stage 1 may use beside the original one: on engines here (`path`), or behind an endpoint
    (`base_url` and `model`)."""

    path: str | None = None
    """Hugging Face folder or name, as `model.path`: served by vLLM engines of this run."""
    actors: PositiveInt = 1
    """Engines of a local model."""
    num_cpus: ResourceUnits = 1.0
    num_gpus: ResourceUnits = 0.0
    tensor_parallel: PositiveInt = 1
    context: PositiveInt | None = None
    thinking: bool = False
    """A local model thinks before it answers, as `model.thinking`."""
    base_url: str | None = None
    """An OpenAI-compatible endpoint, such as `http://localhost:8000/v1`."""
    model: str | None = None
    """The model's name at the endpoint."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key; the key itself stands in no config."""
    concurrency: PositiveInt = 16
    """Requests to the endpoint at the same time, of each worker of stage 1."""
    timeout: PositiveFloat = 120.0
    """Longest wait for one answer of the endpoint."""
    retries: NonNegativeInt = 5
    """Further tries after 429, 5xx, a cut connection or a time-out, with growing pauses."""
    input_cost: NonNegativeFloat = 0.0
    """Price of a million prompt tokens, in any currency: for the cost in the report."""
    output_cost: NonNegativeFloat = 0.0
    """Price of a million generated tokens."""


@dataclass
class RefineGuardsConfig:
    """From where on stage 1 refuses a rewrite or a fused answer, whatever its cosine to the gold answer."""

    repetition: Fraction = 0.25
    """Share of words that may stand in a passage of four which the text had before, on top of the gold answer's own."""
    shortest: Fraction = 0.2
    """Least length, as a share of the gold answer's words; of gold answers of 20 words and more."""
    longest: PositiveFloat = 5.0
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
    language: Fraction = 0.02
    """A text whose words make the language of question and gold answer less likely than this is in another one."""
    script: Fraction = 0.3
    """Share of letters that may be of a script of which neither question nor gold answer has any."""


@dataclass
class RefineConfig:
    enabled: bool = True
    """Off: the data already holds the answers to train on."""
    tau: Fraction = 0.8
    """Eq. 3: a rewrite below this cosine to the gold answer is dropped, and the row keeps the gold answer."""
    rewriter: str = "self"
    """Who rewrites: `self` is the original model (Eq. 1), or a name in `refine.models`."""
    fuser: str = "self"
    """Who fuses gold answer and rewrite (Eq. 4): `self`, a name in `refine.models`, or `none` (the accepted rewrite is
    the fused answer)."""
    judges: list[str] = field(default_factory=lambda: ["embedding", "key_facts"])
    """Who scores candidates in [0, 1], the mean counts: `embedding`, `key_facts`, `exact`, or a model: `self`, or a
    name in `refine.models`."""
    models: dict[EntryName, RefineModelConfig] = field(default_factory=dict)
    """Models beside the original one, by names of your own, for the roles above."""
    embedder: str = "wordllama"
    """`wordllama`, or the name or folder of a sentence-transformers model."""
    similarity_on: SimilarityOn = SimilarityOn.answer
    require_key_facts: bool = True
    """Refuse a rewrite that loses the gold answer's numbers, names or terse content, whatever its cosine."""
    refuse_invented: bool = True
    """Refuse a rewrite with numbers or names that stand neither in the chat nor in the gold answer."""
    attempts: PositiveInt = 1
    """Rewrites sampled at most, until one is accepted; the paper takes 1. Small models need more."""
    candidates: PositiveInt = 2
    """Fused candidates a round."""
    rounds: PositiveInt = 2
    """Rounds at most; the best mean score over all rounds wins."""
    stop_score: Fraction = 0.8
    """Stop early once a candidate's mean score reaches this."""
    candidate_gold: bool = False
    """The gold answer takes part as a candidate."""
    candidate_rewrite: bool = True
    """The accepted rewrite takes part as a candidate."""
    temperature: NonNegativeFloat = 0.3
    fuse_temperature: NonNegativeFloat = 0.5
    max_new_tokens: PositiveInt = 128
    rewrite_prompt: str = "rewrite"
    """A prompt file: a name under `configs/prompts/` (`rewrite_short` is for terse gold answers), or a path. Fields:
    `{prompt}` `{answer}`."""
    fuse_prompt: str = "fuse"
    """A prompt file. Fields: `{prompt}` `{answer}` `{rewrite}`."""
    judge_prompt: str = "judge"
    """A prompt file, for judges that are models. Fields: `{prompt}` `{answer}` `{candidate}`."""
    judge_max_new_tokens: PositiveInt = 256
    """Of a verdict, its reason (and any thinking) included. One that is cut off is no score but a failure."""
    guards: RefineGuardsConfig = field(default_factory=RefineGuardsConfig)
    gap: bool = True
    """Measure how likely the original model finds gold, rewritten and fused answers, for the report; a forward pass
    over each, by actors as section `teacher` describes them."""
    actors: PositiveInt = 1
    """Engines with the original model; with their resources from section `rollout`."""
    workers: PositiveInt = 2
    """Workers of each stage (rewriting, fusing), which do what is to be done around the engines' calls; more than
    engines keep these busy."""
    max_workers: PositiveInt | None = None
    """Ray Data adds workers up to so many to a stage that batches wait for; none keeps `refine.workers`."""
    batch: PositiveInt = 64
    """Rows per call of an engine. Part of what decides the texts: a call is sampled as a whole."""
