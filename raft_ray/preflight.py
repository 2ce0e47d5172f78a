"""Everything that can be found wrong with a run before anything starts: model, tokenizer, prompts, rows.

Loads tokenizers, configs and the embedder, never a language model's weights; knows nothing about Ray. What it returns
is what a run starts from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raft_ray import models
from raft_ray.config import Config, DomainMetric, Method, ModelConfig, OnBadRow, RefineConfig, Target
from raft_ray.config.settings import distils
from raft_ray.data import BadRow, Row, RowTable, check_rows, length_check, read_rows, read_table, write_bad_rows
from raft_ray.data.general import general_prompts
from raft_ray.errors import ConfigError, DataError, ModelError
from raft_ray.evaluate.mmlu import LETTERS
from raft_ray.models.chat import Chat
from raft_ray.models.prompts import (
    EncodedRow,
    PromptEncoder,
    load_teacher_template,
    show_messages,
    show_prompt,
    show_row,
)

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Prepared:
    """A run's checked ingredients."""

    folder: str
    """The student's original model: a local folder or a hub name."""
    teacher: str
    context: int
    """Longest prompt + response in tokens."""
    train: RowTable
    """The training rows, and those left out (`data.on_bad_row=skip`); empty if nothing trains."""
    test: list[Row] | None
    parameters: int | None = None
    """Of the student's model; unknown for hub names."""
    notes: list[str] = field(default_factory=list)
    """What one should know of the model before it trains, a line each."""

    @property
    def refined(self) -> bool:
        """The training file brings fused answers along."""
        return self.train.fused == len(self.train)


def preflight(
    config: Config, *, trains: bool = True, as_they_are: bool = True, others: Iterable[Config] = ()
) -> Prepared:
    """Check model, teacher, prompt files and data of a run against each other.

    The training rows are read once, one at a time, and lie on disk from then on. An evaluation, which `trains` nothing,
    does without them.

    Args:
        as_they_are: the rows train without a stage 1 before, so each must have its target.
        others: of methods that train on the same rows, whose targets and teacher's prompts must fit as well.

    Raises `ModelError`, `ConfigError` or `DataError` for the first thing that cannot work.
    """
    methods = [config, *others]
    folder = models.resolve(config.model.path)
    parameters = models.check_weights(folder, config.model)
    if trains and any(distils(each) for each in methods):
        models.check_rollouts(folder, config.model)
    context = models.model_context(folder, config.model)
    teachers = [_check_teacher(each, folder) for each in methods]
    for each in methods:
        if each.rollout.max_new_tokens >= context:
            raise ConfigError(
                f"rollout.max_new_tokens={each.rollout.max_new_tokens}: leaves no room for a prompt in a context of "
                f"{context}"
            )
    chat = models.load_chat(folder, config.model)
    encoders = {_reads(each): (make_encoder(each, chat), target_of(each), distils(each)) for each in methods}
    readers = _check_stage1(methods) if trains else []
    if config.eval.enabled:
        _check_evaluation(config)

    def count(messages: list[dict[str, str]], answer: str) -> tuple[int, int]:
        if reason := _left_out(chat, messages):
            raise DataError(reason)
        return len(chat.prompt(messages)), len(chat.turn(messages, answer))

    def unfit(row: Row) -> str | None:
        """Why a row does not fit the context with some method's target, or cannot be asked of a model."""
        try:
            for reader in readers:
                reader.prompt(row.messages)
            for encoder, target, taught in encoders.values():
                # What stage 1 will write is not known; `encode` looks at it.
                answer = _answer(row, target) or row.answer
                encoder.row(row.index, row.messages, answer, answer if taught else None, "row")
        except DataError as error:
            return str(error).removeprefix("row: ")
        return None

    train = RowTable()
    if trains:
        fits_limits = length_check(config.data, count)
        train = read_table(
            config.data.train, config.data, split="train", check=lambda row: fits_limits(row) or unfit(row)
        )
        check_rows(train, train.bad, config.data, f"data.train={config.data.train}")
        for each in methods:
            if not each.refine.enabled:
                check_rewrites(each, train.rewrites)
                check_targets(each, train if as_they_are else ())
    test = None
    if config.data.test is not None and config.eval.enabled:
        test, bad_test = read_rows(config.data.test, config.data, split="test", count_tokens=count)
        check_rows(test, bad_test, config.data, f"data.test={config.data.test}")
        _check_choices(config, test, chat, context)
    difference = chat.difference()
    notes = [difference] if difference else []
    return Prepared(folder, teachers[0], context, train, test, parameters, notes)


def make_encoder(config: Config, chat: Chat) -> PromptEncoder:
    """The prompt encoder of a run's method: with the teacher template where the teacher reads the answer."""
    conditioned = config.distill.method is Method.raft
    template = load_teacher_template(config.teacher) if conditioned else None
    return PromptEncoder(
        chat,
        models.model_context(models.resolve(config.model.path), config.model),
        config.rollout.max_new_tokens if distils(config) else 0,
        template,
        config.teacher.on_long_reference,
    )


def encode(config: Config, folder: str, rows: Iterable[Row]) -> tuple[dict[int, EncodedRow], list[BadRow]]:
    """The training rows of a method as token ids, by index: its target answer, and its teacher's prompt.

    A row whose rewrite or fused answer does not fit keeps its gold answer under `data.on_bad_row=skip`, as one whose
    rewrite was refused, and is among the second list's.

    Raises `DataError` for a row whose target is missing or that does not fit, and where a method that trains on
    rewrites has none at all.
    """
    encoder = make_encoder(config, models.load_chat(folder, config.model))
    target, taught = target_of(config), distils(config)
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


def _reads(config: Config) -> tuple[object, ...]:
    """What decides whether a row fits a method."""
    reads = (config.rollout.max_new_tokens, config.teacher.template, config.teacher.on_long_reference)
    return (config.distill.method is Method.raft, distils(config), target_of(config), *reads)


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

    Args:
        rewrites: rows with an accepted rewrite.

    Raises `DataError`.
    """
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


def show_prompts(config: Config, row: int, console: Console) -> None:
    """Print what student, teacher and rewriter read for training row `row` (0-based), with the ids around the joins.

    Takes the row's fused answer where the file has one, else its gold answer. Raises as `preflight` does.
    """
    prepared = preflight(config)
    if not 0 <= row < len(prepared.train):
        raise ConfigError(f"--row {row}: the training set has rows 0 to {len(prepared.train) - 1}")
    chosen = prepared.train[row]
    chosen = replace(chosen, fused=chosen.fused or chosen.answer)
    encoder = make_encoder(config, models.load_chat(prepared.folder, config.model))
    encoded, _ = encode(config, prepared.folder, [chosen])
    show_row(encoder, encoded[row], console)
    if config.refine.enabled:
        _show_rewriter(config, chosen, console)


def _show_rewriter(config: Config, row: Row, console: Console) -> None:
    """Print what stage 1's rewriter reads: an endpoint has its own template."""
    from raft_ray.refine.prompts import load_prompts, rewrite_chat
    from raft_ray.refine.roles import is_local, model_config

    name = config.refine.rewriter
    asked = rewrite_chat(load_prompts(config.refine).rewrite, row.messages, row.prompt, row.answer)
    if is_local(config.refine, name):
        model = model_config(config, name)
        show_prompt(models.load_chat(models.resolve(model.path), model), asked, f"rewriter ({name})", console)
    else:
        show_messages(asked, f"rewriter ({name}, by its own chat template)", console)


def write_bad(prepared: Prepared, run_dir: Path) -> None:
    """List the rows that were left out in `RUN/bad_rows.jsonl`."""
    write_bad_rows(prepared.train.bad, run_dir / "bad_rows.jsonl")


def _left_out(chat: Chat, messages: list[dict[str, str]]) -> str | None:
    """Why a chat with a role that not every chat template knows cannot be used: some leave such messages out."""
    for number, message in enumerate(messages, start=1):
        if message["role"] not in ("system", "user", "assistant"):
            without = chat.prompt([other for other in messages if other is not message])
            if len(chat.prompt(messages)) < len(without) + len(message["content"].split()):
                return (
                    f"message {number} has role '{message['role']}', which the model's chat template leaves out; "
                    "call it system"
                )
    return None


def _check_evaluation(config: Config) -> None:
    """The evaluation's judges, benchmarks and files of questions can be loaded."""
    from raft_ray.evaluate.ifeval import check, load_prompts
    from raft_ray.evaluate.judged import check_judges
    from raft_ray.evaluate.mmlu import load_mmlu
    from raft_ray.evaluate.open_questions import load_open_questions
    from raft_ray.refine.roles import SELF, is_local, model_config

    if config.eval.ifeval_rows != 0:
        check()
        load_prompts(config.eval.ifeval_rows, config.run.seed)
    if config.eval.mmlu is not None:
        load_mmlu(config.eval.mmlu, config.eval.mmlu_rows, config.run.seed, config.eval.mmlu_shots)
    general_prompts(config.eval.general)
    check_judges(config)
    for name in config.eval.judges:
        if name != SELF and is_local(config.refine, name):
            _check_refine_model(f"refine.models.{name}", model_config(config, name))
    if config.eval.open is not None:
        load_open_questions(config.eval.open)


def _check_stage1(methods: list[Config]) -> list[Chat]:
    """Stage 1 of every method finds its prompt files, models and embedder. Returns the templates of other models here
    that rewrite or fuse, which read a row's whole chat."""
    from raft_ray.refine import check_refine
    from raft_ray.refine.embed import make_embedder
    from raft_ray.refine.roles import SELF, local_models, model_config

    readers = []
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
                chat = _check_refine_model(f"refine.models.{name}", model_config(each, name))
                if name in (each.refine.rewriter, each.refine.fuser):
                    readers.append(chat)
    return readers


def _check_teacher(config: Config, folder: str) -> str:
    """The teacher's folder, or hub name: a model whose token ids mean what those of the student in `folder` do."""
    if not config.teacher.path:
        return folder
    with _named("teacher", "path"):
        teacher = models.resolve(config.teacher.path)
        models.check_weights(teacher, config.model)
        models.load_tokenizer(teacher, config.model)
    if teacher != folder:
        _check_same_vocabulary(config, folder, teacher)
    return teacher


def _check_refine_model(section: str, model: ModelConfig) -> Chat:
    """A local model of `refine.models` has weights, tokenizer, chat template and the context asked for. Returns its
    template."""
    with _named(section, "path", "context", "thinking"):
        folder = models.resolve(model.path)
        models.model_context(folder, model)
        return models.load_chat(folder, model)


@contextmanager
def _named(section: str, *keys: str) -> Iterator[None]:
    """Errors about a model in the block name its own section of the config for the keys that it shares with `model`."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            re.sub(rf"(?<![\w./-])model\.(?=(?:{'|'.join(keys)})\b)", f"{section}.", str(error))
        ) from error


def _check_same_vocabulary(config: Config, folder: str, teacher: str) -> None:
    """The teacher's token ids must mean what the student's mean: the KL is taken id by id."""
    ours = models.load_tokenizer(folder, config.model).get_vocab()
    theirs = models.load_tokenizer(teacher, config.model).get_vocab()
    sizes = [models.vocabulary_size(path, config.model) for path in (folder, teacher)]
    if ours != theirs or sizes[0] != sizes[1]:
        raise ModelError(
            f"teacher.path={config.teacher.path}: its vocabulary ({len(theirs)} tokens, head {sizes[1]}) is not that "
            f"of model.path={config.model.path} ({len(ours)} tokens, head {sizes[0]}); leave teacher.path out to use "
            "the original model"
        )


def _check_choices(config: Config, test: list[Row], chat: Chat, context: int) -> None:
    """The domain's measure can be taken on every test row, and every choice be read."""
    metric = config.eval.domain_metric
    for row in test:
        for number, choice in enumerate(row.choices or [], start=1):
            if (tokens := len(chat.content(choice))) >= context:
                raise DataError(
                    f"data.test={config.data.test}: row {row.line}: choice {number} has {tokens} tokens, which leaves "
                    f"no room for the question in a context of {context}; shorten it, or lower data.max_answer and set "
                    "data.on_bad_row=skip"
                )
    line = next((row.line for row in test if row.choices is None), None)
    if metric in (DomainMetric.choice, DomainMetric.letter) and line is not None:
        raise ConfigError(
            f"eval.domain_metric={metric.value}: row {line} of data.test={config.data.test} names no choices "
            f"(data.columns.choices={config.data.columns.choices}); every test row must, or set "
            "eval.domain_metric=contains"
        )
    line = next((row.line for row in test if len(row.choices or []) > len(LETTERS)), None)
    if metric is DomainMetric.letter and line is not None:
        raise ConfigError(
            f"eval.domain_metric=letter: row {line} of data.test={config.data.test} names more than {len(LETTERS)} "
            "choices, for which there are no letters; set eval.domain_metric=choice"
        )
