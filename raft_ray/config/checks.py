"""Refuses a config that cannot work, before anything starts: values out of range, and contradictions.

Every error is one line that names the key and the fix. It looks at no file: `raft_ray.checks` reads those that keys
name.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from raft_ray.config import Config, reading
from raft_ray.config.baselines import check_baselines
from raft_ray.config.methods import check_training
from raft_ray.config.ranges import check_fits, check_ranges
from raft_ray.config.resources import check_local
from raft_ray.errors import ConfigError

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Of the file systems that pyarrow opens by URI."""


def check(config: Config, *, trains: bool = True) -> None:
    """Refuse values out of range and keys that contradict each other. Raises `ConfigError`.

    Args:
        trains: the training set is needed; an evaluation goes without.
    """
    check_ranges(config, "")
    _check_date(config)
    _check_data(config, trains)
    _check_storage(config)
    _check_refine(config)
    _check_eval(config)
    check_training(config, "")
    check_baselines(config)
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
    sources = data.train if isinstance(data.train, list) else [data.train]
    if trains and (not sources or reading.MISSING in sources or "" in sources):
        raise ConfigError(
            "data.train is missing: set data.train=FILE (.jsonl, .csv, .parquet ..), a Hugging Face dataset name, "
            "domain:chemistry, or a list of them"
        )
    if not all(isinstance(source, str) for source in sources):
        raise ConfigError(f"data.train={data.train}: takes text, or a list of texts")
    if data.test and data.test in sources and Path(data.test).suffix:
        raise ConfigError(f"data.test={data.test}: these are the training rows; name a file with other questions")
    columns = data.columns
    if columns.prompt and columns.prompt == columns.answer:
        raise ConfigError(f"data.columns.answer={columns.answer}: data.columns.prompt is the same; name another")
    if not config.run.dir:
        raise ConfigError("run.dir is empty; name a folder for the run")


def _check_storage(config: Config) -> None:
    """Refuse a `run.storage` that is neither a folder nor a URI that can be opened. Raises `ConfigError`."""
    storage = config.run.storage
    if storage is None:
        return
    if not storage:
        raise ConfigError("run.storage is empty; name a folder or URI, or set run.storage=null for the run folder")
    uri = urlsplit(storage)
    if not uri.scheme:
        return
    if uri.scheme not in _SCHEMES:
        hint = reading.nearest(uri.scheme, list(_SCHEMES))
        raise ConfigError(
            f"run.storage={storage}: there is no file system {uri.scheme}{hint} (known: {', '.join(_SCHEMES)})"
        )
    if uri.scheme == "file" and (uri.netloc or not uri.path.startswith("/")):
        raise ConfigError(f"run.storage={storage}: a local URI has three slashes: file:///FOLDER")
    if uri.scheme not in ("file", "hdfs", "viewfs") and not uri.netloc:
        raise ConfigError(f"run.storage={storage}: names no bucket; write {uri.scheme}://BUCKET/FOLDER")


def _check_refine(config: Config) -> None:
    refine = config.refine
    if refine.max_workers is not None and refine.max_workers < refine.workers:
        raise ConfigError(
            f"refine.max_workers={refine.max_workers}: below refine.workers={refine.workers}; raise it, or leave it out"
        )
    if refine.enabled:
        check_fits(config, "refine.max_new_tokens", refine.max_new_tokens)


def _check_eval(config: Config) -> None:
    if not config.eval.enabled:
        return
    if config.data.test is not None:
        check_fits(config, "eval.domain_max_new_tokens", config.eval.domain_max_new_tokens)
    if config.eval.ifeval_rows != 0:
        check_fits(config, "eval.ifeval_max_new_tokens", config.eval.ifeval_max_new_tokens)
    check_fits(config, "eval.general_max_new_tokens", config.eval.general_max_new_tokens)
    shots = config.eval.mmlu_shots
    if config.eval.mmlu is not None and (not shots or min(shots) < 0 or len(set(shots)) < len(shots)):
        raise ConfigError(f"eval.mmlu_shots={shots}: must be different numbers from 0 on, such as [0, 5]")
