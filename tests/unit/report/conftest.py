"""What the report's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fixture import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")
