"""The comparison's evaluation: once for all models, one at a time where one cannot be evaluated, and only what is
missing when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from actors import compare as module
from actors.runtime.progress import Bars
from raft_ray.compare.plan import plan
from raft_ray.config import Config, settings
from raft_ray.errors import ModelError
from raft_ray.evaluate.kept import KeptAnswers
from raft_ray.preflight import Prepared

FOLDERS = {"base": "b", "sft/seed0": "s", "raft/seed0": "r"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The models of each evaluation that was asked for; one named `bad` cannot be evaluated."""
    calls: list[list[str]] = []

    def evaluate(
        models: dict[str, str], config: Config, rows: None, progress: Any, base_answers: Path
    ) -> dict[str, Any]:
        calls.append(list(models))
        asked = [name for name in models if name != "base" or not base_answers.exists()]
        base_answers.write_text("[]")
        if "bad" in models.values():
            raise ModelError("bad: its parameters are not those of b")
        return {name: {"model": models[name], "call": len(calls)} for name in asked}

    monkeypatch.setattr(module, "evaluate_models", evaluate)
    return calls


def _evaluate(folders: dict[str, str], run_dir: Path) -> tuple[dict[str, Any], dict[str, str]]:
    prepared = Prepared.__new__(Prepared)
    object.__setattr__(prepared, "test", None)
    object.__setattr__(prepared, "folder", folders["base"])
    with Bars(Console(quiet=True)) as bars:
        work = module._Work(Config(), prepared, bars, run_dir, [])
        work._folders = folders
        return work._evaluated(), work.failed


def test_all_models_are_evaluated_together(asked: list[list[str]], tmp_path: Path) -> None:
    KeptAnswers(str(tmp_path)).put("base", "call", {})
    (tmp_path / "answers/base/open.jsonl").touch()
    blocks, failed = _evaluate(FOLDERS, tmp_path)
    assert asked == [list(FOLDERS)]
    assert list(blocks) == list(FOLDERS)
    assert failed == {}
    assert json.loads((tmp_path / "eval.json").read_text())["methods"] == blocks
    assert not (tmp_path / "answers").exists()


def test_a_model_that_cannot_be_evaluated_loses_none_of_the_others(asked: list[list[str]], tmp_path: Path) -> None:
    blocks, failed = _evaluate({**FOLDERS, "opd/seed0": "bad"}, tmp_path)
    # The base too, whose answers the failed evaluation had left.
    assert set(blocks) == set(FOLDERS)
    assert failed == {"opd/seed0": "bad: its parameters are not those of b"}


def test_a_resumed_comparison_evaluates_what_is_missing(asked: list[list[str]], tmp_path: Path) -> None:
    before, _ = _evaluate(FOLDERS, tmp_path)
    blocks, _ = _evaluate({**FOLDERS, "opd/seed0": "o"}, tmp_path)
    assert asked[1:] == [["base", "opd/seed0"]]
    assert {name: blocks[name] for name in before} == before, "the base was asked anew"
    assert "opd/seed0" in blocks
    _evaluate({**FOLDERS, "opd/seed0": "o"}, tmp_path)
    assert len(asked) == 2


def test_a_model_whose_folder_was_removed_is_evaluated_anew_and_what_was_derived_of_it_too(tmp_path: Path) -> None:
    config = settings.load("smoke", ["compare.methods=[sft,fapm,wise,raft]", f"run.dir={tmp_path}"])
    trainings = plan(config, tmp_path)
    for training in trainings:
        (training.folder / "model").mkdir(parents=True)
    names = ["base", *(training.name for training in trainings), "other/seed0"]
    (tmp_path / "eval.json").write_text(json.dumps({"main": "raft", "methods": {name: {} for name in names}}))
    module._forget(trainings, tmp_path)
    assert list(json.loads((tmp_path / "eval.json").read_text())["methods"]) == names

    (tmp_path / "methods/sft/seed0/model").rmdir()
    module._forget(trainings, tmp_path)
    assert set(json.loads((tmp_path / "eval.json").read_text())["methods"]) == {"base", "raft/seed0", "other/seed0"}
    assert not (tmp_path / "methods/fapm/seed0").exists()
    assert not (tmp_path / "methods/wise/alpha=0.5/seed0").exists()
    assert (tmp_path / "methods/raft/seed0/model").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_row_with_a_stage_1_of_its_own_trains_on_its_own_rows_and_fails_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    def refined_rows(config: Config, prepared: Any, bars: Any, run_dir: Path, name: str) -> list[str]:
        if fails:
            raise ModelError("no rewriter")
        return [name]

    def trained(config: Config, prepared: Any, rows: list[str], bars: Any, root: Path, place: Path, name: str) -> str:
        trained_on[name] = rows
        return f"model of {name}"

    trained_on: dict[str, list[str]] = {}
    monkeypatch.setattr(module, "refined_rows", refined_rows)
    monkeypatch.setattr(module, "trained", trained)
    monkeypatch.setattr(module, "locate", lambda *_: SimpleNamespace(clear=lambda: None))
    own = "compare.overrides={strict: {refine: {tau: 0.9}, distill: {method: sft}}}"
    config = settings.load("smoke", ["compare.methods=[sft,strict]", "compare.seeds=[0,1]", own])
    prepared: Any = SimpleNamespace(folder="b")
    with Bars(Console(quiet=True)) as bars:
        work = module._Work(config, prepared, bars, tmp_path, ["main"])  # type: ignore[list-item]
        for training in plan(config, tmp_path):
            work._train(training)
    sft = {f"sft/seed{seed}": ["main"] for seed in (0, 1)}
    assert trained_on == sft | ({} if fails else {f"strict/seed{seed}": ["refined-strict"] for seed in (0, 1)})
    assert work.failed == ({"strict": "no rewriter"} if fails else {})
    assert work._folders == {"base": "b"} | {name: f"model of {name}" for name in trained_on}
