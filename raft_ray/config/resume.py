"""What a resumed run may not change: the keys that decide what it keeps.

A model that is trained and an evaluation that is made are taken as they are. With other settings they would stand in
the report under a config that they do not follow. A model may be trained on, for more steps than were asked for before.
A checkpoint remembers the values with which it was made (`deciding`), also where `config.yaml` was edited since.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft_ray.config import Balance, Config, SyncAdapter, settings
from raft_ray.errors import ConfigError

# A checkpoint holds the place in this order of rows, and weights of this model: they cannot change on the way.
_CHECKPOINT = {
    *("run.seed", "run.storage", "data.train", "data.limit", "learner.global_batch_size"),
    *(f"model.{name}" for name in ("path", "adapter", "dtype", "thinking", "date")),
    *(f"distill.{name}" for name in ("method", "target", "loss", "off_policy")),
    *(f"distill.rehearsal.{name}" for name in ("rows", "kind", "prompts", "forms")),
    *("eval.every", "eval.validation", "eval.validation_rows"),
    *(f"learner.lora.{name}" for name in ("rank", "alpha", "target_modules", "rslora", "dora")),
}
_RESOURCES = {"actors", "num_cpus", "num_gpus", "threads", "tokens", "timeout", "max_restarts", "max_failures"}
# By section; all others of its keys decide what model comes out.
_WITHOUT_EFFECT = {
    "data": {"streaming"},
    "model": {"context", "trust_remote_code", "allow_pickle"},
    "refine": {"models", "gap", "workers", "max_workers", "batch"},
    "rollout": {
        *("min_actors", "max_actors", "batch_rows", "tensor_parallel", "kv_cache_gib", "gpu_memory_utilization"),
    },
    "learner": {
        *("num_workers", "max_tokens_per_microbatch", "zero_stage", "share_prompt", "graphs"),
        *("gradient_checkpointing", "checkpoint_every", "keep"),
    },
    "sync": {"backend", "checksum"},
    "teacher": {"place"},
}
_LENGTH = {"learner.epochs", "learner.max_steps"}
_SELECTING = {"eval.keep", "eval.max_drift", "eval.patience"}
"""Which of the weights of a training become its model, where it is evaluated meanwhile."""
_MEASURED = {"data.test", "data.test_split", "compare.sparsity", *_LENGTH}
"""Beside all of section `eval`: what `eval.json` follows from and the model does not, or not alone."""


def keep_date(config: Config) -> None:
    """Let a run that is resumed name the day on which it was started: its rows were encoded with that."""
    saved = Path(config.run.dir) / "config.yaml"
    if saved.is_file():
        config.model.date = settings.load(str(saved)).model.date


def check_same_run(config: Config, folder: Path, *, longer: bool = True) -> None:
    """Refuse to go on in `folder` with settings that what is kept there was not made with. `longer`: it may be trained
    for more steps or, until its model is there, go on with other settings. Raises `ConfigError` naming the key, its two
    values, and how to have it made anew."""
    saved_path = folder / "config.yaml"
    if not saved_path.is_file():
        raise ConfigError(f"run.dir={folder}: there is no run to resume (no config.yaml there); leave out --resume")
    trained = (folder / "model").exists() or not longer
    another = "start a new run with --run-dir"
    # The folder of a main run holds refined rows and every other model as well.
    retrain = another if longer and folder == Path(config.run.dir) else "remove that folder to train it anew"
    saved, now = settings.flatten(settings.load(str(saved_path))), settings.flatten(config)
    for key in (key for key in now if saved[key] != now[key]):
        if trained and (_trains(key) or (key in _LENGTH and not longer)):
            what, anew = f"the model in {folder} was trained", retrain
        elif key in _CHECKPOINT:
            what, anew = f"the run in {folder} was started", another
        elif (folder / "eval.json").exists() and _measures(key):
            what, anew = f"{folder / 'eval.json'} was measured", "remove that file to measure all models anew"
        else:
            continue
        raise ConfigError(f"{key}={now[key]}: {what} with {saved[key]}; resume with that, or {anew}")


def deciding(config: Config) -> dict[str, Any]:
    """The values, as JSON has them, of the keys that decide what model a number of steps makes."""
    # Without rehearsal, a budget, evaluations meanwhile, an adapter, or one that is swapped, none of their keys decides
    # anything.
    left_out = ["run.storage"]
    left_out += [] if config.distill.rehearsal.rows else ["distill.rehearsal."]
    left_out += [] if config.distill.balance is Balance.budget else ["distill.drift_budget"]
    left_out += [] if config.eval.every else ["eval."]
    left_out += [] if config.learner.lora.rank else ["learner.lora."]
    left_out += [] if config.sync.adapter is SyncAdapter.hot else ["sync.adapter"]
    left_out += [] if config.model.adapter else ["model.adapter"]
    values = settings.flatten(config)
    return {key: value for key, value in values.items() if _trains(key) and not key.startswith(tuple(left_out))}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`KEY=VALUE (was VALUE)` of each key whose value is another."""
    keys = sorted({*before, *now})
    return [f"{k}={now.get(k)} (was {before.get(k)})" for k in keys if before.get(k) != now.get(k)]


def _trains(key: str) -> bool:
    """It decides what model comes out."""
    section, _, name = key.partition(".")
    if key in _CHECKPOINT | _SELECTING or section in ("run", "compare") or _measures(key):
        return key in _CHECKPOINT | _SELECTING
    return name not in _RESOURCES | _WITHOUT_EFFECT.get(section, set())


def _measures(key: str) -> bool:
    """It decides what an evaluation says."""
    return key in _MEASURED or (key.startswith("eval.") and key not in _CHECKPOINT | _SELECTING)
