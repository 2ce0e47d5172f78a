"""Models that were trained elsewhere: refused where they do not fit, measured anew where they are others now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_fixture import save_adapter
from safetensors.torch import load_file, save_file

from raft_ray.compare.given import changed, check_given
from raft_ray.compare.plan import by_seeds, plan
from raft_ray.config import settings
from raft_ray.errors import ModelError


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


def _check(folder: object, tiny_model: Path) -> None:
    config = settings.load("raft", ["data.train=t.jsonl", f"model.path={tiny_model}"])
    config.compare.models = {"theirs": [str(folder)]}
    check_given(config, str(tiny_model))


def test_a_given_row_comes_first_with_a_seed_for_each_folder_and_with_the_grids_seeds() -> None:
    keys = ["compare.methods=[sft]", "compare.seeds=[3,4]", "compare.grid_seeds=1", "compare.models={theirs: [a, b]}"]
    config = settings.load("raft", ["data.train=t.jsonl", *keys])
    trainings = plan(config, Path("run"))
    assert [one.name for one in trainings] == ["theirs/seed0", "theirs/seed1", "sft/seed3", "sft/seed4"]
    assert [one.model for one in trainings[:2]] == [Path("a"), Path("b")]
    first, others = by_seeds(trainings, config.compare)
    assert [one.name for one in first] == ["theirs/seed0", "theirs/seed1", "sft/seed3"]
    assert [one.name for one in others] == ["sft/seed4"]


def test_a_model_that_fits_passes(copied: Path, tiny_model: Path) -> None:
    _check(copied, tiny_model)


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _another_parameter(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), "model.extra": torch.zeros(1)}, file, metadata={"format": "pt"})


def _another_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"compare\.models\.theirs: .*copied"),
        (_without_weights, r"compare\.models\.theirs: .*copied: no \*\.safetensors weights"),
        (_another_parameter, r"compare\.models\.theirs: .*copied.*model\.extra"),
        (_another_vocabulary, r"compare\.models\.theirs: .*copied: its vocabulary"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_row_and_folder(
    damage: object, message: str, copied: Path, tiny_model: Path
) -> None:
    assert callable(damage)
    damage(copied)
    with pytest.raises(ModelError, match=message) as caught:
        _check(copied, tiny_model)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_given_on_the_model_of_the_comparison(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    _check(adapter, tiny_model)
    config = settings.load("raft", ["data.train=t.jsonl", f"model.path={tiny_model}", f"model.adapter={tmp_path}/own"])
    config.compare.models = {"theirs": [str(adapter)]}
    training = plan(config, tmp_path)[0]
    assert training.given == f"{tiny_model} + {adapter}"
    evaluation = tmp_path / "eval.json"
    evaluation.write_text("{}")
    assert not changed(training, {"model": training.given}, evaluation)
    later = adapter / "later.json"
    while not later.exists() or later.stat().st_ctime <= evaluation.stat().st_mtime:
        later.write_text("{}")
    assert changed(training, {"model": training.given}, evaluation)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"^compare\.models\.theirs: .*adapter: there is no adapter_model"):
        _check(adapter, tiny_model)


def test_a_model_is_another_once_its_folder_or_files_change(copied: Path, tmp_path: Path) -> None:
    config = settings.load("raft", ["data.train=t.jsonl"])
    config.compare.models = {"theirs": [str(copied)]}
    training = plan(config, tmp_path)[0]
    evaluation = tmp_path / "eval.json"
    evaluation.write_text("{}")
    assert not changed(training, {"model": str(copied)}, evaluation)
    assert changed(training, {"model": "elsewhere"}, evaluation)
    # Copying sets old times; the entry is new all the same.
    shutil.copy2(copied / "config.json", copied / "copy.json")
    assert changed(training, {"model": str(copied)}, evaluation)
