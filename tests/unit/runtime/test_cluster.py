"""What is known of the processes of a local Ray; no Ray started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from actors.runtime.cluster import socket_folders

LISTENS = """
import sys, time
from multiprocessing.connection import Listener
listener = Listener(family="AF_UNIX")
print(listener.address, flush=True)
time.sleep(600)
"""


def test_the_folders_in_which_a_child_listens_are_found_and_nobody_elses() -> None:
    before = socket_folders()
    child = subprocess.Popen([sys.executable, "-c", LISTENS], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        address = Path(child.stdout.readline().strip())
        assert socket_folders() - before == {address.parent}
    finally:
        child.kill()
        child.wait()
    address.unlink()
    address.parent.rmdir()
