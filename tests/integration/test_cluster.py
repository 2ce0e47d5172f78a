"""A local Ray: closed to whoever has no token, and refused when it cannot hold the roles."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import ray
from http_status import status_of
from listening import open_to_others

from actors.runtime import cluster
from raft_ray.config import Config
from raft_ray.errors import ConfigError


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_rays_dashboard_answers_nobody_without_the_token() -> None:
    address = ray._private.worker.global_worker.node.webui_url
    assert address
    for path in ("/api/jobs/", "/api/v0/actors", "/api/cluster_status"):
        assert status_of(f"http://{address}{path}", None) == 401


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_ray_listens_to_this_machine_alone_and_its_token_is_the_users_alone() -> None:
    assert open_to_others(psutil.Process()) == []
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("actors", 40, "the roles ask for 43 CPUs"), ("num_gpus", 2.0, "the roles ask for 2 GPUs")],
)
def test_roles_that_the_cluster_cannot_hold_are_refused_by_name(key: str, value: float, message: str) -> None:
    config = Config()
    setattr(config.rollout, key, value)
    with pytest.raises(ConfigError, match=f"{message}.*rollout.actors.*the cluster has"):
        cluster.start(config)
    with pytest.raises(ConfigError, match=message):
        cluster.start(Config(), config)


def test_gpus_that_this_machine_lacks_are_refused_before_a_local_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "loopback", lambda: pytest.fail("Ray starts"))
    cluster.stop()
    config = Config()
    config.rollout.num_gpus = 200.0
    with pytest.raises(ConfigError, match=r"the roles ask for 200 GPUs.*rollout.actors.*the cluster has"):
        cluster.start(config)


def test_a_local_ray_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=disabled: a local Ray starts only with token"):
        cluster.start(Config())
