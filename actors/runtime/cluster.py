"""Ray: starting or joining it, with token authentication, and the resources of each role.

A run joins the cluster it is told of (`run.ray_address`) or the one whose job it is (`ray job submit` sets
`RAY_ADDRESS`), else it starts a local Ray and ends it again. A local one listens on the loopback interface alone.
Authentication is by token in every case: whoever reaches Ray's ports can run code.
"""

from __future__ import annotations

import getpass
import hashlib
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from raft_ray import announce
from raft_ray.config import Config
from raft_ray.config.checks import required_resources
from raft_ray.errors import ConfigError, RaftError
from raft_ray.interrupts import interrupts

_TMP = "RAFT_RAY_TMP"
"""Names the temporary folder of a run's actors, in their environment."""
CONNECT = 30.0
"""Seconds to reach a cluster's port."""


@contextmanager
def cluster(config: Config, *others: Config) -> Iterator[None]:
    """Ray for the time of the block. A local one is started and ended; a given one is joined and left; one that this
    process has joined already is used and kept. `others`: of what trains there, one at a time, beside `config`'s own.
    Raises `ConfigError` when the cluster lacks CPUs or GPUs for the roles, naming what asks for how much."""
    import ray

    ours = not ray.is_initialized()
    start(config, *others)
    node = ray._private.worker._global_node
    session = Path(node.get_session_dir_path()) if ours and node is not None and node.is_head() else None
    try:
        yield
        left: set[Path] = {session, *socket_folders()} if session else set()
    finally:
        if ours:
            stop()
    # Also Ray's logs, of a run that has ended well: each of our own actors has its log in the run folder.
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    if session and (latest := session.with_name("session_latest")).is_symlink() and not latest.exists():
        latest.unlink()


def socket_folders() -> set[Path]:
    """Temporary folders of Python's multiprocessing in which processes that this one has started listen: the dashboard
    of a local Ray does, and is ended by a signal."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found |= {Path(str(connection.laddr)).parent for connection in process.net_connections("unix")}
    return {folder for folder in found if folder.name.startswith("pymp-")}


def address_of(config: Config) -> str | None:
    """Of the cluster that a run joins; none where it starts a local Ray."""
    return config.run.ray_address or os.environ.get("RAY_ADDRESS")


def start(config: Config, *others: Config) -> None:
    """Join or start Ray; see `cluster`."""
    address = address_of(config)
    key = "run.ray_address" if config.run.ray_address else "RAY_ADDRESS"
    cpus, gpus = (max(needs) for needs in zip(*map(required_resources, (config, *others)), strict=True))
    if not address:
        mode = os.environ.get("RAY_AUTH_MODE", "token")
        if mode != "token":
            raise ConfigError(f"RAY_AUTH_MODE={mode}: a local Ray starts only with token authentication; unset it")
        # Ray reads the mode when it is imported; where it was imported before, it turns tokens on by itself for a
        # new local cluster, as long as the mode is unset.
        if "ray" not in sys.modules:
            os.environ["RAY_AUTH_MODE"] = "token"
    import ray

    # Ray Train looks at its workers every 2 s by itself: a checkpoint, and the end of training, would wait so long.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if ray.is_initialized():
        _check_resources(cpus, gpus, joined=bool(address))
        return
    if gpus and not address:
        import torch

        _compare({"GPU": gpus}, {"GPU": torch.cuda.device_count()})
    # Ray's and Ray Data's notices would break up the progress bars; errors reach us as exceptions.
    logging.getLogger("ray").setLevel(logging.ERROR)
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address:
            check_address(address, key)
            ray.init(address=address, **common)
        else:
            # Each training would have a process that waits for nodes to be taken away; this one ends with us.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            private_token()
            # CPUs are logical: roles that take turns share the cores, so a laptop need not have one for each.
            logical = config.run.local_cpus or max(os.cpu_count() or 1, math.ceil(cpus))
            with loopback():
                # `local`: also where another cluster runs on this machine, which Ray would otherwise join.
                ray.init(address="local", num_cpus=logical, include_dashboard=True, **common)
            private_token()
    except ConnectionError as error:
        raise RaftError(f"{key}={address}: no Ray cluster answers there ({error})") from error
    except Exception as error:  # Ray raises the class itself where its processes do not come up in time.
        if address or isinstance(error, RaftError):
            raise
        ray.shutdown()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RaftError(
            f"no local Ray has started ({reason}); try again when the machine is less busy, or look into /tmp/ray"
        ) from error
    except SystemExit:
        # From a handler of SIGTERM that Ray has set meanwhile.
        raise interrupts.arrived(signal.SIGTERM) from None
    finally:
        interrupts.install()
    _check_resources(cpus, gpus, joined=bool(address))


@contextmanager
def loopback() -> Iterator[None]:
    """A Ray that starts in the block takes the loopback address for all its ports, also those that ask for no token.
    `ray.init` replaces a loopback address by the host's, unless clusters are switched off, as they are on macOS."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def private_token() -> None:
    """Let nobody else read the user's Ray token: Ray writes its file for everybody."""
    folder = Path.home() / ".ray"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "auth_token").chmod(0o600)


def check_address(address: str, key: str) -> None:
    """Refuse what is no address of a Ray cluster, and one at which nobody listens: Ray itself would wait for minutes.
    `key`: the config key, variable or option that names it. Raises `ConfigError`, and `RaftError` after at most
    `CONNECT` seconds."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{key}={address}: that is a dashboard, for `ray job submit`; a run joins a cluster at HOST:6379, or "
            "starts its own Ray where the address is left out (`env -u RAY_ADDRESS raft-ray ...`)"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # such as `auto`, which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except OSError as error:
        raise RaftError(f"{key}={address}: nobody answers there within {CONNECT:g} s ({error})") from error


def stop() -> None:
    """Leave Ray; a local one ends with it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def _check_resources(cpus: float, gpus: float, *, joined: bool) -> None:
    """Refuse what the cluster cannot hold; in one that was there before, a node that is just joining counts."""
    import ray

    for attempt in Retrying(
        retry=retry_if_exception_type(ConfigError),
        wait=wait_fixed(0.25),
        stop=stop_after_delay(5 * joined),
        reraise=True,
    ):
        with attempt:
            _compare({"CPU": cpus, "GPU": gpus}, ray.cluster_resources())


def _compare(needs: Mapping[str, float], have: Mapping[str, float]) -> None:
    for name, need in needs.items():
        if have.get(name, 0) < need:
            raise ConfigError(
                f"the roles ask for {need:g} {name}s (rollout.actors, teacher.actors, learner.num_workers times their "
                f"num_{name.lower()}s), the cluster has {have.get(name, 0):g}; lower one of these keys or add nodes"
            )


def actor_options(
    *,
    role: str,
    num_cpus: float,
    num_gpus: float,
    threads: int | None,
    overlapped: bool = False,
    keep_memory: bool = False,
) -> dict[str, Any]:
    """Keyword arguments for `.options(...)` or `ray_remote_args`: resources and the process environment.

    Args:
        role: names the process in its environment (`RAFT_RAY_ROLE`).
        threads: of torch on the CPU; none takes all cores.
        overlapped: other roles compute at the same time on the same cores.
        keep_memory: freed memory stays with the process on the CPU, for torch models that allocate the same anew at
            every step.
    """
    count = threads or os.cpu_count() or 1
    env = {
        "RAFT_RAY_ROLE": role,
        "OMP_NUM_THREADS": str(count),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DS_ACCELERATOR": "cpu" if num_gpus == 0 else "cuda",
    }
    if keep_memory and num_gpus == 0:
        # glibc gives large blocks back to the system at once, in threads' own arenas always (Ray trains in a thread),
        # and every step pays anew for their pages: a third of a learner's time (docs/benchmarks.md). Engines
        # gain little by it.
        env |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    if overlapped and num_gpus == 0:
        # libgomp's threads spin while they wait; with several torch processes on the same cores that costs 5-8x.
        env["GOMP_SPINCOUNT"] = "1000"
    env |= {name: os.environ[name] for name in ("RAFT_RAY_CACHE", _TMP, announce.VARIABLE) if name in os.environ}
    return {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": {"env_vars": env}}


def log_to_file(run_dir: Path, name: str) -> None:
    """Send this process's stdout, stderr and logging to `RUN/logs/NAME.log`, so that the terminal stays readable. On a
    node that does not see the run folder the file is made there at the same path."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    if run := os.environ.get(_TMP):
        _use_tmp(Path(tempfile.gettempdir()) / run)


@contextmanager
def own_tmp(run_dir: Path) -> Iterator[None]:
    """Actors of the run that log to a file have a temporary folder of the run's own on their node; when the block ends
    well, it is removed on all nodes. What vLLM and multiprocessing put there would stay: actors end by a signal."""
    import ray

    os.environ[_TMP] = f"raft-ray-tmp-{hashlib.sha256(f'{os.getuid()} {run_dir}'.encode()).hexdigest()[:12]}"
    try:
        yield
        task = ray.remote(_remove_tmp)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        done = [task.options(num_cpus=0, **on_node(node)).remote(os.environ[_TMP]) for node in nodes]
        ray.wait(done, num_returns=len(done), timeout=60)
    finally:
        del os.environ[_TMP]


def _use_tmp(folder: Path) -> None:
    # What torch compiles stays for the next run.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.parent / f"torchinductor_{getpass.getuser()}"))
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RaftError(f"{folder}: it belongs to another user; set TMPDIR to a folder of your own")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _remove_tmp(name: str) -> None:
    shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)


@contextmanager
def keeper(kind: type, role: str, *arguments: Any) -> Iterator[Any]:
    """The handle of an actor that keeps a file of the run folder, on this node, where that is; it ends with the block.
    It takes no CPU of its own, since those for whom it keeps may hold all, and Ray starts it again where it dies."""
    import ray

    options = actor_options(role=role, num_cpus=0, num_gpus=0, threads=1)
    actor: Any = ray.remote(kind).options(max_restarts=-1, max_task_retries=-1, **options, **on_node())
    handle = actor.remote(*arguments)
    try:
        yield handle
    finally:
        ray.kill(handle)


def on_node(node: str | None = None) -> dict[str, Any]:
    """Options that put an actor or task on a node, by its id, and nowhere else; none is this process's own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node or ray.get_runtime_context().get_node_id(), soft=False)
    return {"scheduling_strategy": place}


def here() -> str:
    """This process's host, for messages."""
    return socket.gethostname()
