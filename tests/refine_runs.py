"""What the tests of stage 1 on the cluster share: rows in a file, a config, and the refining of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refine_fixture import read_refined

from raft_ray.config import (
    Config,
    DataConfig,
    Dtype,
    ModelConfig,
    RefineConfig,
    RefineGuardsConfig,
    RolloutConfig,
    RunConfig,
    SimilarityOn,
)
from raft_ray.config.precision import of_cpu
from raft_ray.data import read_table
from raft_ray.models import EMBEDDED, TINY
from raft_ray.refine.schema import RefinedRow, read_summary

Row = tuple[str, str]

TINY_REFINE: dict[str, Any] = {
    # What two random layers write passes no guard on facts, but it must go through all of stage 1.
    "batch": 3,
    "max_new_tokens": 40,
    "tau": 0.1,
    "similarity_on": SimilarityOn.question_answer,
    "require_key_facts": False,
    "refuse_invented": False,
    "guards": RefineGuardsConfig(repetition=1.0, shortest=0.0, longest=1000.0, leaks=[], language=0.0, script=1.0),
    "candidates": 2,
    "rounds": 2,
    "attempts": 3,
}


def tiny_rows(count: int) -> list[Row]:
    """Terse answers, which the tiny model's letters resemble now and then; every fifth row is the same."""
    return [("What comes next?" if n % 5 == 4 else f"What is {n} and {n}?", f"a{n % 5} b c") for n in range(count)]


def make_config(folder: Path, rows: list[Row], model: str = TINY, **refine: Any) -> Config:
    """A config for `refine`; its rows are in a file beside the run folder."""
    path = folder.parent / f"{folder.name}.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows))
    return Config(
        run=RunConfig(dir=str(folder), local_cpus=4),
        model=ModelConfig(path=model, dtype=of_cpu() if model == EMBEDDED else Dtype.float32),
        data=DataConfig(train=str(path)),
        refine=RefineConfig(**refine),
        rollout=RolloutConfig(kv_cache_gib=0.25, timeout=240.0, threads=1),
    )


def refine(config: Config, progress: Any = None) -> list[RefinedRow]:
    """Stage 1 in the run folder; Ray must be running."""
    from actors.refine.flow import refine as refine_rows

    found = read_table(config.data.train, config.data, split="train")
    return read_refined(refine_rows(found, config, refined_folder(config), progress))


def refined_folder(config: Config) -> Path:
    return Path(config.run.dir) / "refined"


def summary(config: Config) -> dict[str, Any]:
    return read_summary(refined_folder(config))
