"""Everything that can be found wrong with a run before anything starts: model, tokenizer, prompts, rows.

Loads tokenizers, configs and the embedder, never a language model's weights; knows nothing about Ray. What it returns
is what a run starts from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from raft_ray import models
from raft_ray.config import Config, DomainMetric, Method, OnBadRow, RefineConfig, RehearsalConfig, Target
from raft_ray.data import BadRow, Row, RowTable, check_rows, length_check, read_rows, read_table
from raft_ray.data.general import general_prompts
from raft_ray.distill.rehearsal import given_prompts
from raft_ray.errors import ConfigError, DataError, ModelError
from raft_ray.evaluate import ifeval
from raft_ray.evaluate.judged import check_judges
from raft_ray.evaluate.mmlu import LETTERS, load_mmlu
from raft_ray.evaluate.open_questions import load_open_questions
from raft_ray.evaluate.validation import validation_rows
from raft_ray.models.chat import Chat
from raft_ray.models.prompts import EncodedRow, PromptEncoder, load_teacher_template
from raft_ray.refine.embed import make_embedder
from raft_ray.refine.roles import SELF, check_refine, is_local, local_models, model_config


@dataclass(frozen=True)
class Prepared:
    """A run's checked ingredients."""

    folder: str
    """The student's original model: a local folder, a hub name, or a base with an adapter (`raft_ray.models.sources`).
    """
    teacher: str
    context: int
    """Longest prompt + response in tokens."""
    train: RowTable
    """The training rows, and those left out (`data.on_bad_row=skip`); empty if nothing trains."""
    test: list[Row] | None
    notes: list[str] = field(default_factory=list)
    """What one should know of the model before it trains, a line each."""
    validation: list[Row] = field(default_factory=list)
    """Questions of the evaluations while it trains, none of them in `train`; empty without `eval.every`."""

    @property
    def refined(self) -> bool:
        """The training file brings fused answers along."""
        return self.train.fused == len(self.train)


def preflight(
    config: Config,
    *,
    trains: bool = True,
    as_they_are: bool = True,
    holds_out: bool = True,
    others: Iterable[Config] = (),
) -> Prepared:
    """Check model, teacher, prompt files and data of a run against each other.

    The training rows are read once, one at a time, and lie on disk from then on. An evaluation, which `trains` nothing,
    does without them.

    Args:
        as_they_are: the rows train without a stage 1 before, so each must have its target.
        holds_out: validation questions are taken out of the rows, if they are to be (`eval.every`).
        others: of methods that train on the same rows, whose targets and teacher's prompts must fit as well.

    Raises `ModelError`, `ConfigError` or `DataError` for the first thing that cannot work.
    """
    methods = [config, *others]
    name = models.source(config.model)
    models.check_weights(name, config.model)
    adapters = [models.check_adapter(name, each) for each in methods if trains]
    folder = models.settled(name)
    for each in methods if trains else ():
        if each.swaps_adapters:
            models.swapped_layers(folder, config.model, each.learner.lora, on_gpu=each.rollout.num_gpus > 0)
    if trains and any(each.uses_engines for each in methods):
        models.check_rollouts(folder, config.model)
    context = models.model_context(folder, config.model)
    teachers = [_check_teacher(each, folder) for each in methods]
    for tokens in (each.rollout.max_new_tokens for each in methods):
        if tokens >= context:
            raise ConfigError(f"rollout.max_new_tokens={tokens}: leaves no room for a prompt in a context of {context}")
    chat = models.load_chat(folder, config.model)
    encoders = [make_encoder(each, chat) for each in methods]
    rewriters = _check_stage1(methods) if trains else []
    if trains:
        _check_rehearsal(methods, chat, context)
    if config.eval.enabled:
        _check_evaluation(config)
    train, validation = RowTable(), list[Row]()
    if trains:
        train = _training_rows(config, list(zip(methods, encoders, strict=True)), rewriters)
        if config.eval.every and holds_out:
            train, validation = validation_rows(config, train, partial(_count, chat))
        for each in methods:
            if not each.refine.enabled:
                check_rewrites(each, train.rewrites)
                check_targets(each, train if as_they_are else ())
    test = _test_rows(config, chat, context) if config.data.test is not None and config.eval.enabled else None
    notes = [note for note in dict.fromkeys([*adapters, chat.difference()]) if note]
    if Path(folder).is_dir():  # learners work in folders of their own
        folder = str(Path(folder).absolute())
    return Prepared(folder, teachers[0], context, train, test, notes, validation)


def _check_teacher(config: Config, folder: str) -> str:
    """The teacher's folder, or hub name: a model whose token ids mean what those of the student in `folder` do, since
    the KL is taken id by id."""
    if not config.teacher.path:
        return folder
    with _named("teacher", "path"):
        name = models.given(config.teacher.path, config.model)
        models.check_weights(name, config.model)
        teacher = models.settled(name)
        differs = None if teacher == folder else models.vocabulary_difference(teacher, folder, config.model)
    if differs:
        raise ModelError(
            f"teacher.path={config.teacher.path}: {differs}; leave teacher.path out to use the original model"
        )
    return teacher


def make_encoder(config: Config, chat: Chat) -> PromptEncoder:
    """The prompt encoder of a run's method: with the teacher template where the teacher reads the answer."""
    return PromptEncoder(
        chat,
        models.model_context(models.source(config.model), config.model),
        config.rollout.max_new_tokens if config.uses_distillation else 0,
        load_teacher_template(config.teacher) if config.distill.method is Method.raft else None,
        config.teacher.on_long_reference,
    )


def _check_stage1(methods: list[Config]) -> list[Chat]:
    """Stage 1 of every method finds its prompt files, models and embedder. Returns the templates of other models here
    that rewrite or fuse, which read a row's whole chat."""
    rewriters = []
    seen: list[RefineConfig] = []
    for each in methods:
        # Methods mostly share their stage 1.
        if not each.refine.enabled or each.refine in seen:
            continue
        seen.append(each.refine)
        check_refine(each)
        make_embedder(each.refine.embedder)
        for name in local_models(each.refine):
            if name != SELF:
                chat = _check_refine_model(each, name)
                if name in (each.refine.rewriter, each.refine.fuser):
                    rewriters.append(chat)
    return rewriters


def _check_rehearsal(methods: list[Config], chat: Chat, context: int) -> None:
    """Every method's rehearsal has prompts, or what the model needs to write them, and room for answers."""
    seen: list[RehearsalConfig] = []
    for each in methods:
        if not (rehearsal := each.distill.rehearsal).rows or rehearsal in seen:
            continue
        seen.append(rehearsal)
        if rehearsal.max_new_tokens >= context:
            raise ConfigError(
                f"distill.rehearsal.max_new_tokens={rehearsal.max_new_tokens}: leaves no room for a prompt in a "
                f"context of {context}"
            )
        if rehearsal.prompts != SELF:
            given_prompts(each, chat, context)
        elif chat.user_turn:
            make_embedder(each.refine.embedder)


def _check_evaluation(config: Config) -> None:
    """The evaluation's judges, benchmarks and files of questions can be loaded."""
    asked = config.eval
    if asked.ifeval_rows != 0:
        ifeval.check()
        ifeval.load_prompts(asked.ifeval_rows, config.run.seed)
    if asked.mmlu is not None:
        load_mmlu(asked.mmlu, asked.mmlu_rows, config.run.seed, asked.mmlu_shots)
    general_prompts(asked.general)
    check_judges(config)
    for name in asked.judges:
        if name != SELF and is_local(config.refine, name):
            _check_refine_model(config, name)
    if asked.open is not None:
        load_open_questions(asked.open)


def _check_refine_model(config: Config, name: str) -> Chat:
    """A local model of `refine.models` has weights, tokenizer, chat template and the context asked for. Returns its
    template."""
    model = model_config(config, name)
    with _named(f"refine.models.{name}", "path", "context", "thinking"):
        folder = models.source(model)
        models.model_context(folder, model)
        return models.load_chat(folder, model)


@contextmanager
def _named(section: str, *keys: str) -> Iterator[None]:
    """Errors about a model in the block name its own section of the config for the keys that it shares with `model`."""
    try:
        yield
    except ModelError as error:
        shared = rf"(?<![\w./-])model\.(?=(?:{'|'.join(keys)})\b)"
        raise ModelError(re.sub(shared, f"{section}.", str(error))) from error


def _training_rows(config: Config, methods: list[tuple[Config, PromptEncoder]], rewriters: list[Chat]) -> RowTable:
    """The training set, every row of which fits `data`'s limits, the context with each method's target, and the
    templates of stage 1."""
    chat = methods[0][1].chat
    fits_limits = length_check(config.data, lambda messages, answer: _count(chat, messages, answer))
    wanted: list[tuple[PromptEncoder, Target, bool]] = []
    for each, encoder in methods:
        if (reads := (encoder, target_of(each), each.uses_distillation)) not in wanted:
            wanted.append(reads)

    def unfit(row: Row) -> str | None:
        try:
            for rewriter in rewriters:
                rewriter.prompt(row.messages)
            for encoder, target, taught in wanted:
                # What stage 1 will write is not known; `encode` looks at it.
                answer = _answer(row, target) or row.answer
                encoder.row(row.index, row.messages, answer, answer if taught else None, "row")
        except DataError as error:
            return str(error).removeprefix("row: ")
        return None

    train = read_table(config.data.train, config.data, split="train", check=lambda row: fits_limits(row) or unfit(row))
    check_rows(train, train.bad, config.data, f"data.train={config.data.train}")
    return train


def _count(chat: Chat, messages: list[dict[str, str]], answer: str) -> tuple[int, int]:
    """Tokens of prompt and answer. Raises `DataError` for a chat with a role that the chat template leaves out: not
    every one knows others than these three."""
    for number, message in enumerate(messages, start=1):
        if message["role"] not in ("system", "user", "assistant"):
            without = chat.prompt([other for other in messages if other is not message])
            if len(chat.prompt(messages)) < len(without) + len(message["content"].split()):
                raise DataError(
                    f"message {number} has role '{message['role']}', which the model's chat template leaves out; "
                    "call it system"
                )
    return len(chat.prompt(messages)), len(chat.turn(messages, answer))


def _test_rows(config: Config, chat: Chat, context: int) -> list[Row]:
    """The test questions, on each of which the domain's measure can be taken, and whose choices can be read."""
    name = f"data.test={config.data.test}"
    assert config.data.test is not None
    test, bad = read_rows(
        config.data.test,
        config.data,
        split="test",
        count_tokens=lambda messages, answer: _count(chat, messages, answer),
    )
    check_rows(test, bad, config.data, name)
    metric = config.eval.domain_metric
    for row in test:
        for number, choice in enumerate(row.choices or [], start=1):
            if (tokens := len(chat.content(choice))) >= context:
                raise DataError(
                    f"{name}: row {row.line}: choice {number} has {tokens} tokens, which leaves no room for the "
                    f"question in a context of {context}; shorten it, or lower data.max_answer and set "
                    "data.on_bad_row=skip"
                )
    for row in test:
        if metric in (DomainMetric.choice, DomainMetric.letter) and row.choices is None:
            raise ConfigError(
                f"eval.domain_metric={metric.value}: row {row.line} of {name} names no choices "
                f"(data.columns.choices={config.data.columns.choices}); every test row must, or set "
                "eval.domain_metric=contains"
            )
        if metric is DomainMetric.letter and len(row.choices or []) > len(LETTERS):
            raise ConfigError(
                f"eval.domain_metric=letter: row {row.line} of {name} names more than {len(LETTERS)} choices, for "
                "which there are no letters; set eval.domain_metric=choice"
            )
    return test


def encode(config: Config, folder: str, rows: Iterable[Row]) -> tuple[dict[int, EncodedRow], list[BadRow]]:
    """The training rows of a method as token ids, by index: its target answer, and its teacher's prompt. A row whose
    rewrite or fused answer does not fit keeps its gold answer under `data.on_bad_row=skip`, as one whose rewrite was
    refused, and is among the second list's. Raises `DataError` for a row whose target is missing or that does not fit,
    and where a method that trains on rewrites has none at all."""
    encoder = make_encoder(config, models.load_chat(folder, config.model))
    target, taught = target_of(config), config.uses_distillation
    encoded, unfit = {}, []
    rewrites = 0
    for row in rows:
        where = f"data.train={config.data.train}: {row.where}"
        answer = _required(config, row)
        rewrites += row.rewrite is not None
        try:
            encoded[row.index] = encoder.row(row.index, row.messages, answer, answer if taught else None, where)
        except DataError as error:
            if answer == row.answer:
                raise
            if config.data.on_bad_row is OnBadRow.error:
                raise DataError(f"{error}; or train on its gold answer instead with data.on_bad_row=skip") from error
            gold = row.answer
            encoded[row.index] = encoder.row(row.index, row.messages, gold, gold if taught else None, where)
            reason = str(error).removeprefix(f"{where}: ")
            said = f"{target.value} answer: {reason}; trained on its gold answer"
            unfit.append(BadRow(row.line, said, file=row.file))
    check_rewrites(config, rewrites)
    return encoded, unfit


def _answer(row: Row, target: Target) -> str | None:
    """The answer of a row that a target means; none where the row has no fused one."""
    return {Target.gold: row.answer, Target.rewrite: row.rewrite or row.answer, Target.fused: row.fused}[target]


def check_targets(config: Config, rows: Iterable[Row]) -> None:
    """Refuse rows that stage 1 has not gone over where a method trains on fused answers. Raises `DataError`."""
    for row in rows:
        _required(config, row)


def _required(config: Config, row: Row) -> str:
    """The answer that a method trains on. Raises `DataError` where the row has none."""
    answer = _answer(row, target_of(config))
    if answer is None:
        raise DataError(
            f"data.train={config.data.train}: {row.where}: no fused answer; set refine.enabled=true, run "
            "`raft-ray refine` first, or train on the gold answers with distill.target=gold"
        )
    return answer


def check_rewrites(config: Config, rewrites: int) -> None:
    """Refuse to train on rewrites where there are none: single rows keep their gold answers, but all would be SFT.
    `rewrites`: rows with an accepted rewrite. Raises `DataError`."""
    if target_of(config) is Target.rewrite and not rewrites:
        why = "stage 1 accepted none" if config.refine.enabled else "refine.enabled=false, and no row brings one along"
        raise DataError(
            f"data.train={config.data.train}: {config.distill.method.value} trains on accepted rewrites, and there are "
            f"none ({why}); train on refined rows, or on the gold answers with distill.target=gold"
        )


def target_of(config: Config) -> Target:
    """Which answer a method's cross-entropy is taken on, `auto` resolved."""
    if config.distill.target is not Target.auto:
        return config.distill.target
    return {Method.sft: Target.gold, Method.sdft: Target.rewrite}.get(config.distill.method, Target.fused)
