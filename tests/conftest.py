"""What every test relies on: no hub is asked for anything, and the folder it works in is its own if it wants one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any test imports transformers or datasets, which read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of `random:tiny`: two layers, 512 tokens of vocabulary and of context."""
    from raft_ray import models

    return Path(models.resolve(models.TINY))
