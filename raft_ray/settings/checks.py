"""Refuses a config that cannot work, before anything starts: values out of range, and contradictions.

Every error is one line that names the key and the fix. It knows nothing about the contents of data and models
(`raft_ray.preflight` reads those), and looks at no folder (`check_run_dir` does).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

from raft_ray.config import Config, Method
from raft_ray.errors import ConfigError
from raft_ray.settings import reading
from raft_ray.settings.baselines import check_baselines
from raft_ray.settings.folders import check_storage
from raft_ray.settings.ranges import check_fits, check_ranges
from raft_ray.settings.resources import check_local
from raft_ray.settings.training import check_training


def check(config: Config, *, trains: bool = True) -> None:
    """Refuse values out of range and keys that contradict each other. Raises `ConfigError`.

    Args:
        trains: the training set is needed; an evaluation goes without.
    """
    check_ranges(config, "")
    _check_date(config)
    _check_data(config, trains)
    check_storage(config)
    _check_refine(config)
    _check_eval(config)
    check_training(config, "")
    check_baselines(config)
    if trains:
        _check_teacher(config)
    check_local(config)


def _check_date(config: Config) -> None:
    try:
        date.fromisoformat(config.model.date or date.today().isoformat())
    except ValueError as error:
        raise ConfigError(
            f"model.date={config.model.date}: takes a day such as 2026-01-31, or null for today"
        ) from error


def _check_data(config: Config, trains: bool) -> None:
    data = config.data
    if trains and data.train in (reading.MISSING, ""):
        raise ConfigError(
            "data.train is missing: set data.train=FILE (.jsonl or .parquet), a Hugging Face dataset name, "
            "or domain:chemistry"
        )
    if data.test == data.train and Path(data.train).suffix in (".jsonl", ".parquet"):
        raise ConfigError(f"data.test={data.test}: these are the training rows; name a file with other questions")
    if data.prompt_field == data.answer_field:
        raise ConfigError(f"data.answer_field={data.answer_field}: data.prompt_field is the same; name another")
    if not config.run.dir:
        raise ConfigError("run.dir is empty; name a folder for the run")


def _check_refine(config: Config) -> None:
    from raft_ray.refine import check_refine

    refine = config.refine
    if refine.max_workers is not None and refine.max_workers < refine.workers:
        raise ConfigError(
            f"refine.max_workers={refine.max_workers}: below refine.workers={refine.workers}; raise it, or leave it out"
        )
    if refine.enabled:
        check_refine(config)
        check_fits(config, "refine.max_new_tokens", refine.max_new_tokens)


def _check_teacher(config: Config) -> None:
    """Its prompt file is there where the compatibility gap or the training of a method reads it."""
    from raft_ray.prompts import load_teacher_template

    if config.refine.enabled and config.refine.gap:
        load_teacher_template(config.teacher)
    for made in (config, *(reading.for_method(config, name) for name in config.run.baselines)):
        if made.distill.method is Method.raft:
            load_teacher_template(made.teacher)


def _check_eval(config: Config) -> None:
    from raft_ray.evaluate.judged import check_judges

    if not config.eval.enabled:
        return
    if config.data.test is not None:
        check_fits(config, "eval.domain_max_new_tokens", config.eval.domain_max_new_tokens)
    if config.eval.ifeval_rows != 0:
        check_fits(config, "eval.ifeval_max_new_tokens", config.eval.ifeval_max_new_tokens)
    check_fits(config, "eval.general_max_new_tokens", config.eval.general_max_new_tokens)
    check_judges(config)
    if config.eval.open is not None:
        check_fits(config, "eval.open_max_new_tokens", config.eval.open_max_new_tokens)
    shots = config.eval.mmlu_shots
    if config.eval.mmlu is not None and (not shots or min(shots) < 0 or len(set(shots)) < len(shots)):
        raise ConfigError(f"eval.mmlu_shots={shots}: must be different numbers from 0 on, such as [0, 5]")
