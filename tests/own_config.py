"""A user's config, loaded and looked at as before a run."""

from __future__ import annotations

import pytest

from raft_ray.checks import check
from raft_ray.config import Config, settings
from raft_ray.errors import ConfigError

OWN_DATA = ["data.train=train.jsonl", "data.test=test.jsonl"]


def fine(*overrides: str) -> Config:
    config = settings.load("raft", [*OWN_DATA, *overrides])
    check(config)
    return config


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(settings.load("raft", [*OWN_DATA, *overrides]))
    message = str(caught.value)
    assert "\n" not in message
    return message
