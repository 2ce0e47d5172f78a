"""Ray's worker processes as forks of processes that have imported torch, vLLM, DeepSpeed and Ray already.

A run on a tiny model spends most of its time on imports: a dozen worker processes, up to nine seconds each. The
processes are as real as others, do the same, are killed and started again; what differs is their parent.

```
raylet ──starts──► setup_worker.py ──► worker.py ──socket──► template ──forks──► the worker
                   stays, and ends as the worker ends           ▲
                                                   server ──forks, one for each job
```

The server (one for a test process) has imported all but Ray, whose core reads its environment when it is imported; a
template has imported Ray, too, with the variables of one raylet's workers for one job, and ends with that raylet.
`forked_workers(socket)` starts the server; every Ray that this process starts takes its workers there. They share its
seed of hashes: that a run does not depend on it is seen where whole runs are compared that start as users start them
(`tests/faults/test_interrupts.py`).
"""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# What is read once, by what is imported. Threads that a library starts when it is imported would be lost in a fork.
ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


def _import_most() -> None:
    """All but Ray, whose core reads its environment variables once, when it is imported."""
    # vLLM would import it for engines on several GPUs.
    sys.modules["ray"] = None  # type: ignore[assignment]
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401

    import raft_ray.distill.student
    import raft_ray.models.loading
    import raft_ray.refine.refiner  # noqa: F401

    del sys.modules["ray"]


def import_ray() -> None:
    """Ray, and the classes of our actors.

    Ray's core draws ids with a generator that is seeded at its first use, so it must not be used before the fork: two
    workers would give different objects the same ids. Only classes of actors are given one when they are imported.
    """
    import ray.actor

    class ActorClassID(ray.ActorClassID):
        @classmethod
        def from_random(cls) -> ray.ActorClassID:
            return ray.ActorClassID(os.urandom(cls.size()))

    ray.actor.ActorClassID = ActorClassID
    import ray.data
    import ray.train.torch
    import ray.train.v2._internal.execution.controller
    import ray.util.state

    import actors.compare  # noqa: F401

    ray.actor.ActorClassID = ray.ActorClassID


def serve(path: Path, raylet: Path = Path("/proc/self")) -> None:
    """Fork a worker per request, or a template, as long as the process lives that started this one.

    Args:
        raylet: a folder that is there as long as the raylet lives whose workers are forked.
    """
    # Otherwise each collection in a fork (an engine's start asks for five) would touch, and so copy, all there is.
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    listener.settimeout(0.05)
    os.rename(f"{path}.new", path)
    parent = os.getppid()
    waiting: dict[int, socket.socket] = {}
    templates: set[str] = set()
    while os.getppid() == parent and (waiting or raylet.exists()):
        while waiting or templates:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if client := waiting.pop(pid, None):
                with client, suppress(OSError):
                    client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        client.setblocking(True)
        try:
            request, files = _received(client)
        except (EOFError, OSError):
            client.close()  # Its process was killed before it had said what it wants.
            continue
        template = request.get("template")
        if template in templates:
            client.close()
            continue
        pid = os.fork()
        if pid == 0:
            for other in (listener, client, *waiting.values()):
                other.close()
            if template:
                os.environ.clear()
                os.environ.update(request["environment"] | ENVIRONMENT)
                import_ray()
                serve(Path(template), Path("/proc", request["environment"]["RAY_RAYLET_PID"]))
                os._exit(0)
            _become(request, files)
        for file in files:
            os.close(file)
        if template:
            templates.add(template)
            client.close()
        else:
            waiting[pid] = client
            with suppress(OSError):
                client.sendall(f"{pid}\n".encode())


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    files = array.array("i")
    data, control, _, _ = client.recvmsg(1 << 20, socket.CMSG_LEN(3 * files.itemsize))
    for _, _, descriptors in control:
        files.frombytes(descriptors)
    while not data.endswith(b"\n"):
        if not (more := client.recv(1 << 20)):
            raise EOFError
        data += more
    return json.loads(data), list(files)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """In the forked process: the worker, to its end."""
    code = 1
    try:
        # Raylet kills the process group of a worker that ends.
        os.setpgid(0, 0)
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        import numpy as np
        import torch

        np.random.seed()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        script, *_ = sys.argv = request["command"]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def take_workers() -> None:
    """Every Ray that this process starts from now on, and what starts one at its command, takes its workers here."""
    import ray._private.workers
    from ray._private.parameter import RayParams

    os.environ["RAFT_RAY_TEST_RAYS_WORKERS"] = str(Path(ray._private.workers.__file__).parent)
    begin = RayParams.__init__

    def begin_with_forks(self: RayParams, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.worker_path, self.setup_worker_path = str(HERE / "worker.py"), str(HERE / "setup_worker.py")

    RayParams.__init__ = begin_with_forks  # type: ignore[method-assign]


@contextmanager
def forked_workers(path: Path) -> Iterator[None]:
    """The server for the time of the block, which is the rest of the process's.

    Args:
        path: of the server's socket, which must be short.
    """
    modules = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen([*command, str(path)], env=os.environ | ENVIRONMENT | {"PYTHONPATH": modules})
    os.environ["RAFT_RAY_TEST_FORKS"] = str(path)
    take_workers()
    try:
        while not path.exists():
            assert server.poll() is None, "the server of forks has not started"
            time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()
        for socket_path in path.parent.glob(f"{path.name}*"):
            socket_path.unlink()


if __name__ == "__main__":
    first, *others = sys.argv[1:]
    if first == "--serve":
        _import_most()
        serve(Path(others[0]))
    else:
        # A module by its name, whose Ray takes its workers from the server of the process that started it.
        take_workers()
        sys.argv = [first, *others]
        runpy.run_module(first, run_name="__main__", alter_sys=True)
