"""What comes from the environment is used but never written or shown; credentials in URIs are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raft_ray.cli import app
from raft_ray.config import settings
from raft_ray.config.explain import explained
from raft_ray.config.references import Reference, check_no_credentials
from raft_ray.config.resume import check_same_run, deciding
from raft_ray.errors import ConfigError
from raft_ray.printable import one_line

SECRET = "hunter2-of-the-environment"
KEYS = [
    "data.train=${oc.env:RAFT_SECRET}.jsonl",
    "model.path=${data.train}",
    "run.overrides={sft: {model: {path: '${oc.env:RAFT_SECRET}'}}}",
    "run.baselines=[sft]",
    "refine.models={big: {base_url: 'http://localhost/${oc.env:RAFT_SECRET}', model: m}}",
    "refine.guards.leaks=['${oc.env:RAFT_SECRET}']",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_SECRET", SECRET)


def test_a_value_from_the_environment_is_resolved_in_memory_alone(tmp_path: Path) -> None:
    config = settings.load("smoke", KEYS)
    assert config.data.train == config.model.path == f"{SECRET}.jsonl"
    assert config.refine.guards.leaks == [SECRET]
    assert config.refine.models["big"].base_url == f"http://localhost/{SECRET}"
    assert settings.for_method(config, "sft").data.train == f"{SECRET}.jsonl"
    for made in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        for text in (settings.to_yaml(made), explained(made)):
            assert SECRET not in text
            assert "${oc.env:RAFT_SECRET}" in text
    settings.save(config, tmp_path / "config.yaml")
    assert SECRET not in (tmp_path / "config.yaml").read_text()
    assert settings.load(str(tmp_path / "config.yaml")) == config
    settings.save(settings.for_method(config, "sft"), tmp_path / "sft.yaml")
    assert SECRET not in (tmp_path / "sft.yaml").read_text()
    assert SECRET not in json.dumps(settings.flatten(config))
    # What checkpoints keep of the settings, and say of their changes.
    assert SECRET not in json.dumps(deciding(config))


def test_terminals_show_the_reference() -> None:
    config = settings.load("smoke", ["data.train=${oc.env:RAFT_SECRET}.jsonl"])
    assert one_line(f"data.train={config.data.train}: none") == "data.train=${oc.env:RAFT_SECRET}.jsonl: none"
    result = CliRunner().invoke(app, ["show-config", "smoke", *KEYS])
    assert "${oc.env:RAFT_SECRET}" in result.output
    assert SECRET not in result.output


@pytest.mark.parametrize("key", ["data.train", "learner.lr", "model.dtype", "model.path"])
def test_an_error_about_it_does_not_say_it(workspace: Path, key: str) -> None:
    result = CliRunner().invoke(app, ["show-prompts", "smoke", f"{key}=${{oc.env:RAFT_SECRET}}"])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert key in result.stderr
    assert SECRET not in result.output


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAFT_SECRET")
    with pytest.raises(ConfigError, match=r"data\.train.*'RAFT_SECRET' not found"):
        settings.load("smoke", ["data.train=${oc.env:RAFT_SECRET}"])


def test_a_resume_compares_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["data.train=${oc.env:RAFT_SECRET}", f"run.dir={tmp_path}"]
    settings.save(settings.load("smoke", keys), tmp_path / "config.yaml")
    monkeypatch.setenv("RAFT_SECRET", "rotated-since")
    check_same_run(settings.load("smoke", keys), tmp_path)
    with pytest.raises(ConfigError, match=r"data\.train=other: .* with \$\{oc\.env:RAFT_SECRET\}"):
        check_same_run(settings.load("smoke", ["data.train=other", f"run.dir={tmp_path}"]), tmp_path)


def test_an_ordinary_text_is_no_reference() -> None:
    config = settings.load("smoke", ["run.dir=runs/${run.seed}"])
    assert not isinstance(config.run.dir, Reference)
    assert "dir: runs/0" in settings.to_yaml(config)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "s3://bucket/x?secret_key=hunter2",
        "s3://bucket/x?region=a&AWS_SECRET_ACCESS_KEY=hunter2",
        "s3://bucket/x?access_key=hunter2",
        "s3://bucket/x?session_token=hunter2",
        "abfs://container@account/x?sig=hunter2",
        "https://user:hunter2@host/v1",
        "https://host/v1?api_key=hunter2",
    ],
)
@pytest.mark.parametrize("key", ["run.storage", "refine.models.big.base_url", "data.train"])
def test_credentials_in_a_uri_are_refused_without_being_said(key: str, uri: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}=.*environment") as caught:
        check_no_credentials({key: uri})
    assert "hunter2" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["s3://b/x?region=eu&endpoint_override=h", "/a/b@c", "file:///x", "abfs://container@account/x", "a@b:c"]
)
def test_a_uri_without_credentials_passes(uri: str) -> None:
    check_no_credentials({"run.storage": uri})


def test_no_config_is_loaded_with_credentials() -> None:
    for key in (
        "run.storage=s3://a:hunter2@b/c",
        "data.train=hf://a:hunter2@b/c.jsonl",
        "model.path=s3://a:hunter2@b/c",
    ):
        with pytest.raises(ConfigError, match="credentials") as caught:
            settings.load("smoke", [key])
        assert "hunter2" not in str(caught.value)
    endpoint = "refine.models={big: {base_url: 'https://u:hunter2@h/v1', model: m}}"
    with pytest.raises(ConfigError, match="credentials"):
        settings.load("smoke", [endpoint])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("root:x:0:0:hunter2:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n", "line 1"),
        ("hunter2\n", "line 1"),
        ("learner:\n  lr: 1\nhunter2 of all: 3\n", "line 3"),
        ("- hunter2\n", "must hold sections"),
        ("API=hunter2\nB=c\n", "line 1"),
        ("a: b: hunter2\n", "not valid YAML"),
        ("\x00hunter2", "not valid YAML"),
        ("{" * 3000 + "}" * 3000, "nested too deeply|not valid YAML"),
        ("learner: " + "{a: " * 2000 + "1" + "}" * 2000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("extends", [True, False])
def test_a_file_that_is_no_config_is_named_and_never_quoted(
    workspace: Path, content: str, reason: str, extends: bool
) -> None:
    Path("other.yaml").write_text(content)
    Path("mine.yaml").write_text("extends: other.yaml\n")
    with pytest.raises(ConfigError, match=rf"other\.yaml: .*({reason})") as caught:
        settings.load("mine.yaml" if extends else "other.yaml")
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_override_nested_too_deeply_is_one_line() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        settings.load("smoke", ["run.overrides=" + "{a: " * 2000 + "1" + "}" * 2000])
