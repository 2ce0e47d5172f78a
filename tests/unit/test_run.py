"""What a run does to its folder before anything is trained; no Ray started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from actors import run
from actors.run import running
from raft_ray.config import Config, settings
from raft_ray.data import RowTable
from raft_ray.errors import ConfigError, RaftError
from raft_ray.preflight import Prepared


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return settings.load("smoke", [f"run.dir={tmp_path}/runs/a", "data.train=train.jsonl"])


def prepared(config: Config) -> Prepared:
    return Prepared("model", "model", 64, RowTable(), None)


def with_cluster(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    @contextmanager
    def cluster(*_: Any) -> Iterator[None]:
        if error:
            raise error
        yield

    monkeypatch.setattr(run, "cluster", cluster)
    monkeypatch.setattr(run, "own_tmp", lambda _: nullcontext())


def test_a_cluster_that_is_too_small_leaves_no_run_folder(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cluster(monkeypatch, ConfigError("the roles ask for 9 CPUs"))

    with pytest.raises(ConfigError, match="9 CPUs"):
        running(config, prepared(config)).__enter__()

    assert list(tmp_path.iterdir()) == []


def test_engines_for_which_there_is_no_room_leave_no_run_folder(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cluster(monkeypatch)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    config.refine.actors = 7

    with pytest.raises(ConfigError, match=r"refine\.actors=7.*: the engines need 7 CPUs"):
        running(config, prepared(config), refines=True).__enter__()

    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_reached_leaves_no_run_folder(config: Config, tmp_path: Path) -> None:
    config.run.storage = "hdfs://"

    with pytest.raises(RaftError, match=r"run\.storage=hdfs://: cannot be opened"):
        running(config, prepared(config), trainings=[(config, Path())]).__enter__()

    assert list(tmp_path.iterdir()) == []


def test_a_refused_resume_leaves_the_config_of_the_run_as_it_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cluster(monkeypatch, ConfigError("the roles ask for 9 CPUs"))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    settings.save(config, folder / "config.yaml")
    before = (folder / "config.yaml").read_text()
    config.run.resume, config.rollout.actors = True, 9

    with pytest.raises(ConfigError, match="9 CPUs"):
        running(config, prepared(config)).__enter__()

    assert (folder / "config.yaml").read_text() == before
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_of_two_drivers_in_a_new_folder_the_second_is_refused_and_later_finds_a_run_there(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cluster(monkeypatch)
    with running(config, prepared(config)) as (_, folder):
        for resume in (False, True):
            config.run.resume = resume
            with pytest.raises(RaftError, match=r"process \d+ on .* is at work there"):
                running(config, prepared(config)).__enter__()
    assert {path.name for path in folder.iterdir()} == {"bad_rows.jsonl", "config.yaml"}
    config.run.resume = False
    with pytest.raises(ConfigError, match="is not empty; go on with the run there with --resume"):
        running(config, prepared(config)).__enter__()


def test_a_run_folder_without_the_key_of_its_checkpoints_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cluster(monkeypatch)
    folder = tmp_path / "runs" / "a"
    (folder / "checkpoints" / "checkpoint_2026").mkdir(parents=True)
    settings.save(config, folder / "config.yaml")
    config.run.resume = True

    with pytest.raises(RaftError, match=r"checkpoint\.key: not readable; bring it along with the run folder"):
        running(config, prepared(config), trainings=[(config, Path())]).__enter__()


def test_an_evaluation_of_another_model_is_not_taken_for_this_ones(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(config.run.dir)
    folder.mkdir(parents=True)
    settings.save(config, folder / "config.yaml")
    (folder / "eval.json").write_text(
        '{"main": "model", "methods": {"base": {"model": "b"}, "model": {"model": "one"}}}'
    )
    config.run.resume = True
    monkeypatch.setattr(run, "preflight", lambda *_, **__: prepared(config))
    monkeypatch.setattr(run, "settled", lambda path: path)
    monkeypatch.setattr(run, "summary_table", lambda result: "")
    with_cluster(monkeypatch)
    with pytest.raises(ConfigError, match=r"eval\.json: was measured of b, one, not of b, other; remove that file"):
        run.evaluate_model(config, "other", base="b")
    assert run.evaluate_model(config, "one", base="b")["methods"]["model"] == {"model": "one"}
