"""In the place of Ray's `default_worker.py`: asks a template for a fork that runs Ray's, and ends as that ends."""

import array
import hashlib
import json
import os
import socket
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    command = [os.environ["RAFT_RAY_TEST_RAYS_WORKERS"] + "/default_worker.py", *arguments]
    request = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as template:
        template.connect(_template())
        files = array.array("i", [0, 1, 2])
        data = json.dumps(request).encode() + b"\n"
        sent = template.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        template.sendall(data[sent:])
        with template.makefile() as said:
            # This process's name, by which tests find the fork.
            Path("/proc/self/comm").write_text(f"fork-{said.readline().strip()}")
            code = int(said.readline() or "1")
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _template() -> str:
    """The socket of the template that has imported Ray with the variables of this process."""
    server = os.environ["RAFT_RAY_TEST_FORKS"]
    read = sorted((name, value) for name, value in os.environ.items() if name.startswith("RAY_"))
    path = f"{server}.{hashlib.sha256(repr(read).encode()).hexdigest()[:8]}"
    if not os.path.exists(path):
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(server)
            asked.sendall(json.dumps({"template": path, "environment": dict(os.environ)}).encode() + b"\n")
        while not os.path.exists(path):
            time.sleep(0.02)
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
