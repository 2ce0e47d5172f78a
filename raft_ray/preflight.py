"""Everything that can be found wrong with a run before anything starts: model, tokenizer, prompts, rows.

Loads tokenizers and configs, never weights; knows nothing about Ray. What it returns is what a run starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from raft_ray import models
from raft_ray.config import Config, DomainMetric, Method, ModelConfig, Target
from raft_ray.data import Row, check_rows, length_check, read_rows, write_bad_rows
from raft_ray.errors import ConfigError, DataError, ModelError
from raft_ray.prompts import EncodedRow, PromptEncoder, load_teacher_template, show_row
from raft_ray.settings import distils, for_method
from raft_ray.slices import Scan, scan
from raft_ray.sources import Unusable, first_line

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
    scan: Scan
    """The training set: where its rows stand, and those left out (`data.on_bad_row=skip`); empty if nothing trains."""
    train: list[Row]
    """The training rows, unless only stage 1 wants them."""
    test: list[Row] | None

    @property
    def refined(self) -> bool:
        """The training file brings fused answers along."""
        return self.scan.fused == self.scan.rows


def preflight(config: Config, *, trains: bool = True, keep_rows: bool = True) -> Prepared:
    """Check model, teacher, prompt files and data of a run against each other.

    The training rows are read once, one at a time; with `keep_rows` they stay in memory. An evaluation, which
    `trains` nothing, does without them.

    Raises `ModelError`, `ConfigError` or `DataError` for the first thing that cannot work.
    """
    folder = models.resolve(config.model.path)
    context = models.model_context(folder, config.model)
    teacher = models.resolve(config.teacher.path) if config.teacher.path else folder
    if teacher != folder:
        _check_same_vocabulary(config, folder, teacher)
    if config.rollout.max_new_tokens >= context:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens}: leaves no room for a prompt in a context of "
            f"{context}"
        )
    encoder = make_encoder(config, folder)
    _check_judged(config, trains)

    def count(messages: list[dict[str, str]], answer: str) -> tuple[int, int]:
        try:
            if reason := _left_out(encoder, messages):
                raise Unusable(reason)
            return len(encoder.prompt(messages)), len(encoder.answer(messages, answer))
        except TemplateError as error:
            raise Unusable(f"the model's chat template refuses its messages ({first_line(error)})") from error

    rows: list[Row] = []
    found = Scan(config.data.train, config.data, "train")
    if trains:
        fits_limits = length_check(config.data, count)
        found = scan(
            config.data.train,
            config.data,
            split="train",
            batch=config.refine.batch,
            check=lambda row: fits_limits(row) or _unfit(encoder, row),
            visit=rows.append if keep_rows else None,
        )
        check_rows(found, found.bad, config.data, f"data.train={config.data.train}")
        if not config.refine.enabled:
            for method in (config, *(for_method(config, name) for name in config.run.baselines)):
                check_rewrites(method, found.rewrites)
    test = None
    if config.data.test is not None and config.eval.enabled:
        test, bad_test = read_rows(config.data.test, config.data, split="test", count_tokens=count)
        check_rows(test, bad_test, config.data, f"data.test={config.data.test}")
        _check_choices(config, test)
    return Prepared(folder, teacher, context, found, rows, test)


def make_encoder(config: Config, folder: str) -> PromptEncoder:
    """The prompt encoder of a run's method: with the teacher template where the teacher reads the answer."""
    conditioned = config.distill.method is Method.raft
    template = load_teacher_template(config.teacher) if conditioned else None
    return PromptEncoder(
        models.load_tokenizer(folder, config.model),
        models.model_context(folder, config.model),
        config.rollout.max_new_tokens if distils(config) else 0,
        template,
        config.teacher.on_long_reference,
    )


def encode(config: Config, folder: str, rows: Sequence[Row]) -> dict[int, EncodedRow]:
    """The training rows of a method as token ids, by index: its target answer, and its teacher's prompt.

    Raises `DataError` for a row whose target is missing or that does not fit, and where a method that trains on
    rewrites has none at all.
    """
    encoder = make_encoder(config, folder)
    target = target_of(config)
    check_rewrites(config, sum(row.rewrite is not None for row in rows))
    encoded = {}
    for row in rows:
        answer = {Target.gold: row.answer, Target.rewrite: row.rewrite or row.answer, Target.fused: row.fused}[target]
        where = f"data.train={config.data.train}: row {row.line}"
        if answer is None:
            raise DataError(
                f"{where}: no fused answer; set refine.enabled=true, run `raft-ray refine` first, "
                "or train on the gold answers with distill.target=gold"
            )
        reference = answer if distils(config) else None
        encoded[row.index] = encoder.row(row.index, row.messages, answer, reference, where)
    return encoded


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
    """Print what student and teacher read for training row `row` (0-based), with the ids around the joins.

    Takes the row's fused answer where the file has one, else its gold answer. Raises as `preflight` does.
    """
    prepared = preflight(config)
    if not 0 <= row < len(prepared.train):
        raise ConfigError(f"--row {row}: the training set has rows 0 to {len(prepared.train) - 1}")
    chosen = prepared.train[row]
    chosen = replace(chosen, fused=chosen.fused or chosen.answer)
    encoder = make_encoder(config, prepared.folder)
    show_row(encoder, encode(config, prepared.folder, [chosen])[row], console)


def write_bad(prepared: Prepared, run_dir: Path) -> None:
    """List the rows that were left out in `RUN/bad_rows.jsonl`."""
    write_bad_rows(prepared.scan.bad, run_dir / "bad_rows.jsonl")


def _unfit(encoder: PromptEncoder, row: Row) -> str | None:
    """Why a row does not fit the context together with its response or, for RAFT, in the teacher's prompt."""
    try:
        encoder.row(row.index, row.messages, row.fused or row.answer, row.fused or row.answer, "row")
    except DataError as error:
        return str(error).removeprefix("row: ")
    return None


def _left_out(encoder: PromptEncoder, messages: list[dict[str, str]]) -> str | None:
    """Why a chat with a role that not every chat template knows cannot be used: some leave such messages out."""
    for number, message in enumerate(messages, start=1):
        if message["role"] not in ("system", "user", "assistant"):
            without = encoder.prompt([other for other in messages if other is not message])
            if len(encoder.prompt(messages)) < len(without) + len(message["content"].split()):
                return (
                    f"message {number} has role '{message['role']}', which the model's chat template leaves out; "
                    "call it system"
                )
    return None


def _check_judges(config: Config) -> None:
    """The models that judge the evaluation's answers can be loaded, and the open questions be read."""
    from raft_ray.evaluate.judged import check_judges
    from raft_ray.evaluate.open_questions import load_open_questions
    from raft_ray.refine.roles import SELF, is_local, model_config

    check_judges(config)
    for name in config.eval.judges:
        if name != SELF and is_local(config.refine, name):
            _check_refine_model(f"refine.models.{name}", model_config(config, name))
    if config.eval.open is not None:
        load_open_questions(config.eval.open)


def _check_refine_model(key: str, model: ModelConfig) -> None:
    """A local model of `refine.models` has weights, tokenizer, chat template and the context asked for."""
    try:
        folder = models.resolve(model.path)
        models.load_tokenizer(folder, model)
        models.model_context(folder, model)
    except ModelError as error:
        raise ModelError(str(error).replace("model.", f"{key}.", 1)) from error


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


def _check_choices(config: Config, test: list[Row]) -> None:
    """The domain's measure can be taken on every test row."""
    metric = config.eval.domain_metric
    line = next((row.line for row in test if row.choices is None), None)
    if metric in (DomainMetric.choice, DomainMetric.letter) and line is not None:
        raise ConfigError(
            f"eval.domain_metric={metric.value}: row {line} of data.test={config.data.test} names no choices "
            f"(data.choices_field={config.data.choices_field}); every test row must, or set eval.domain_metric=contains"
        )


def _check_judged(config: Config, trains: bool) -> None:
    """Stage 1 and evaluation find their prompt files and packages."""
    if trains and config.refine.enabled:
        from raft_ray.refine import check_refine
        from raft_ray.refine.roles import SELF, local_models, model_config

        check_refine(config)
        for name in local_models(config.refine):
            if name != SELF:
                _check_refine_model(f"refine.models.{name}", model_config(config, name))
    if config.eval.enabled and config.eval.ifeval_rows != 0:
        from raft_ray.evaluate.ifeval import check

        check()
    if config.eval.enabled and config.eval.mmlu is not None:
        from raft_ray.evaluate.mmlu import load_mmlu

        load_mmlu(config.eval.mmlu, config.eval.mmlu_rows, config.run.seed, config.eval.mmlu_shots)
    if config.eval.enabled:
        _check_judges(config)
