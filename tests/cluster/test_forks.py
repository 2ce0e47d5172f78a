"""The processes that the tests' Ray takes its workers from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DRAW = """
import os
from forked.server import import_ray

import_ray()
import ray
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        print(ray.ObjectID.from_random().hex(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_no_two_workers_draw_the_same_ids() -> None:
    tests = Path(__file__).parents[1]
    drawn = subprocess.run([sys.executable, "-c", DRAW], cwd=tests, capture_output=True, text=True, check=True)
    assert len(set(drawn.stdout.split())) == 3
