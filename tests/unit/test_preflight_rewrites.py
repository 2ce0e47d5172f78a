"""A method that trains on rewrites is refused where there are none, rather than trained on the gold answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raft_ray import models
from raft_ray.config import Config, settings
from raft_ray.data import read_rows
from raft_ray.errors import DataError
from raft_ray.preflight import encode, preflight

PLAIN = {"prompt": "What?", "answer": "This."}


def _config(folder: Path, *overrides: str, rows: tuple[dict[str, object], ...] = (PLAIN, PLAIN)) -> Config:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"data.train={folder}/train.jsonl", "data.test=null", "refine.enabled=false", "run.baselines=[]"]
    return settings.load("smoke", [*files, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [["distill.method=sdft"], ["distill.method=sft", "run.baselines=[sdft]"], ["distill.target=rewrite"]],
)
def test_a_file_without_rewrites_is_refused_before_anything_starts(tmp_path: Path, overrides: list[str]) -> None:
    config = _config(tmp_path, *overrides)
    with pytest.raises(DataError, match=r"trains on accepted rewrites, and there are none \(refine.enabled=false"):
        preflight(config, others=[settings.for_method(config, name) for name in config.run.baselines])


def test_rewrites_that_were_all_refused_are_none(tmp_path: Path) -> None:
    refused = {**PLAIN, "rewrite": "That is this.", "accepted": False}
    with pytest.raises(DataError, match=r"distill\.target=gold"):
        preflight(_config(tmp_path, "distill.method=sdft", rows=(refused,)))


@pytest.mark.parametrize(
    ("overrides", "rewrite"),
    [
        (["distill.method=sdft", "distill.target=gold"], False),
        (["distill.method=sdft"], True),
        (["distill.method=sft"], False),
    ],
)
def test_one_rewrite_is_enough_and_gold_answers_need_none(tmp_path: Path, overrides: list[str], rewrite: bool) -> None:
    other = {**PLAIN, "rewrite": "That is this."} if rewrite else PLAIN
    assert preflight(_config(tmp_path, *overrides, rows=(PLAIN, other))).train.rewrites == int(rewrite)


def test_a_stage_1_that_accepted_nothing_is_refused_before_the_training(tmp_path: Path) -> None:
    config = _config(tmp_path, "distill.method=sdft", "refine.enabled=true")
    rows, _ = read_rows(config.data.train, config.data, split="train")
    with pytest.raises(DataError, match=r"there are none \(stage 1 accepted none\)"):
        encode(config, models.resolve(config.model.path), rows)
