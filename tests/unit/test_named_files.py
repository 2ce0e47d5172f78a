"""Every file that a config names is looked at before anything starts, and what is wrong with it is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raft_ray import models
from raft_ray.config import Config, settings
from raft_ray.config.checks import check
from raft_ray.config.keys import entry_type, keys
from raft_ray.errors import RaftError
from raft_ray.preflight import preflight

ROW = {"prompt": "What?", "answer": "This."}

ROLES = ("refine.enabled=true", "refine.fuser=self", "eval.judges=[self]", "eval.open=asked.jsonl")
"""With them every prompt file is read."""
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "data.train": ("rows.jsonl", ()),
    "data.test": ("rows.parquet", ()),
    "eval.general": ("general.jsonl", ()),
    "eval.validation": ("rows.jsonl", ("eval.every=1", "eval.validation_ifeval_rows=0")),
    "eval.mmlu": ("mmlu", ()),
    "eval.open": ("open.jsonl", ROLES),
    "eval.judge_prompt": ("prompt.txt", ROLES),
    "eval.open_prompt": ("prompt.txt", ROLES),
    "refine.rewrite_prompt": ("prompt.txt", ROLES),
    "refine.fuse_prompt": ("prompt.txt", ROLES),
    "refine.judge_prompt": ("prompt.txt", (*ROLES, "refine.judges=[self]")),
    "distill.rehearsal.prompts": ("rows.jsonl", ("distill.rehearsal.rows=1",)),
    "teacher.template": ("prompt.txt", ("distill.method=raft",)),
    "model.path": ("./model", ()),
    "model.adapter": ("./adapter", ()),
    "teacher.path": ("./model", ()),
    "refine.models.big.path": ("./model", ("refine.enabled=true", "refine.rewriter=big")),
    "refine.embedder": ("./model", ("refine.enabled=true",)),
}
"""By key: the name of a file or folder, and what else must be set for it to be read."""

NAMES = {
    *("run.dir", "run.storage", "run.ray_address", "model.date", "data.train_split", "data.test_split"),
    *(f"data.columns.{name}" for name in ("prompt", "input", "answer", "answers", "choices", "messages")),
    *("refine.rewriter", "refine.fuser", "refine.models.big.base_url", "refine.models.big.model"),
    *("refine.models.big.api_key_env", "learner.lora.target_modules"),
}
"""Keys with texts that name no file to read."""

FAULTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x80\n"),
    "empty": Path.touch,
}


def _looked_at(folder: Path, *overrides: str) -> Config:
    """A config that passed everything that is looked at before a run starts."""
    (folder / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "asked.jsonl").write_text(json.dumps(ROW) + "\n")
    base = (f"data.train={folder}/train.jsonl", "data.test=null", "refine.enabled=false", "distill.target=gold")
    config = settings.load("smoke", [*base, "run.baselines=[]", "eval.open_max_new_tokens=9", *overrides])
    check(config)
    preflight(config)
    return config


def _refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(RaftError) as refused:
        _looked_at(folder, *overrides)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_every_key_that_takes_text_is_known_to_name_a_file_or_not() -> None:
    found = {key for key, kind in keys().items() if kind in (str, str | None, str | list[str])}
    for key, kind in keys().items():
        if entry := entry_type(kind):
            found |= {f"{key}.big.{name}" for name, kind in entry.__annotations__.items() if kind.startswith("str")}
    assert found == FILES.keys() | NAMES


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("key", FILES)
def test_a_file_that_cannot_be_read_is_named_with_its_key(key: str, fault: str, workspace: Path) -> None:
    name, others = FILES[key]
    FAULTS[fault](workspace / name)
    said = _refusal(workspace, *others, f"{key}={name}")
    assert f"{key}={name}" in said


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["test.jsonl", "test.parquet"])
def test_a_file_of_mmlu_that_cannot_be_read_is_named(name: str, fault: str, workspace: Path) -> None:
    (workspace / "mmlu").mkdir()
    FAULTS[fault](workspace / "mmlu" / name)
    said = _refusal(workspace, "eval.mmlu=mmlu")
    assert said.startswith("eval.mmlu")
    assert "mmlu/test" in said or "no questions in test*.jsonl or test*.parquet" in said


MODEL_FAULTS = [
    (key, name, fault)
    for key in ("model.path", "teacher.path", "refine.models.big.path")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors")
    for fault in FAULTS
    # A model needs no generation config, and the weights of other models are the engines' to read.
    if (name, fault) != ("generation_config.json", "missing")
    if (key, name) != ("refine.models.big.path", "model.safetensors") or fault == "missing"
]


@pytest.mark.parametrize(("key", "name", "fault"), MODEL_FAULTS)
def test_a_model_folders_file_that_cannot_be_read_is_named_with_the_key(
    key: str, name: str, fault: str, workspace: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, workspace / "model")
    (workspace / "model" / name).unlink()
    FAULTS[fault](workspace / "model" / name)
    said = _refusal(workspace, *FILES[key][1], f"{key}=./model")
    assert key in said
    assert "./model" in said or "model/" in said


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"eos_token_id": "end"}'])
def test_a_generation_config_that_cannot_be_used_is_named(content: bytes, workspace: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, workspace / "model")
    (workspace / "model" / "generation_config.json").write_bytes(content)
    assert "generation" in _refusal(workspace, "model.path=./model")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("extends", [False, True])
def test_a_config_file_that_cannot_be_read_is_named(extends: bool, fault: str, workspace: Path) -> None:
    FAULTS[fault](workspace / "mine.yaml")
    if extends:
        (workspace / "top.yaml").write_text("extends: ./mine.yaml\n")
    with pytest.raises(RaftError) as refused:
        check(settings.load("./top.yaml" if extends else "./mine.yaml"))
    # An empty file sets nothing, so that the data is missing.
    assert ("data.train is missing" if fault == "empty" else "mine.yaml") in str(refused.value)


@pytest.mark.parametrize("key", ["model.path", "teacher.path", "refine.models.big.path", "refine.embedder"])
@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_model_that_the_hub_does_not_give_is_named_before_anything_starts(
    key: str, name: str, workspace: Path
) -> None:
    assert f"{key}={name}" in _refusal(workspace, *FILES[key][1], f"{key}={name}")


@pytest.mark.parametrize("role", ["refine.judges=[big]", "refine.fuser=big", "eval.judges=[big]"])
def test_a_model_that_the_hub_does_not_give_is_named_in_every_role(role: str, workspace: Path) -> None:
    said = _refusal(workspace, *ROLES, role, "refine.models.big.path=nobody/nothing")
    assert "refine.models.big.path=nobody/nothing" in said


def test_the_models_of_every_compared_row_are_looked_at(workspace: Path) -> None:
    config = _looked_at(workspace)
    other = settings.load(
        "smoke",
        [f"data.train={config.data.train}", "refine.enabled=true", "refine.embedder=nobody/nothing"],
    )
    with pytest.raises(RaftError, match=r"refine\.embedder=nobody/nothing"):
        preflight(config, others=[other])


def test_a_home_folder_is_understood_and_nobodys_is_named(
    workspace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, (_, others) in FILES.items():
        if key != "refine.embedder":
            assert "~nobody-here/x" in _refusal(workspace, *others, f"{key}=~nobody-here/x")
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert models.resolve(f"~/{tiny_model.name}") == str(tiny_model)
