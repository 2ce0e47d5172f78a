"""In the place of Ray's `default_worker.py`: asks the server for a fork that runs Ray's, and ends as that ends."""

import array
import json
import os
import socket
import sys


def main(arguments: list[str]) -> None:
    command = [os.environ["RAFT_RAY_TEST_RAYS_WORKERS"] + "/default_worker.py", *arguments]
    request = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["RAFT_RAY_TEST_FORKS"])
        files = array.array("i", [0, 1, 2])
        data = json.dumps(request).encode() + b"\n"
        sent = server.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(data[sent:])
        code = int(server.recv(16) or b"1")
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
