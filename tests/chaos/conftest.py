"""What the chaos tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """For a listener. A socket's path must be short."""
    path = Path(f"/tmp/raft-chaos-{os.getpid()}.sock")
    yield path
    path.unlink(missing_ok=True)
