"""How another process finds a run that is going on: `raft-ray status` and `raft-ray scale`.

While a method trains, its run folder holds `cluster.json` with the address of the Ray cluster and the name of the
pipeline actor. No token is in it: Ray takes that from where it keeps it (`RAY_AUTH_TOKEN`, or the user's token file).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from raft_ray.errors import RaftError
from raft_ray.files import write_whole
from raft_ray.json_files import read_json

NAMESPACE = "raft-ray"
_FILE = "cluster.json"
_TIMEOUT = 60.0


def actor_name(run_dir: Path) -> str:
    """Name of the pipeline actor that trains in `run_dir`."""
    return f"pipeline-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:16]}"


@contextmanager
def reachable(run_dir: Path) -> Iterator[None]:
    """`cluster.json` stands in the run folder for the time of the block."""
    import ray

    path = run_dir / _FILE
    address = ray.get_runtime_context().gcs_address
    write_whole(path, json.dumps({"address": address, "namespace": NAMESPACE, "pipeline": actor_name(run_dir)}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find(run: Path) -> Path:
    """The record of what trains in a run folder: itself, a baseline or a training of a comparison. Raises `RaftError`
    when nothing does."""
    found = next((path for path in (run / _FILE, *sorted(run.glob(f"methods/**/{_FILE}"))) if path.exists()), None)
    if found is None:
        raise RaftError(f"{run}: nothing trains in this run folder at the moment (no {_FILE})")
    return found


def status(run: Path, address: str | None = None) -> dict[str, Any]:
    """What the run is doing; see `PipelineActor.status`. Raises as `_ask`."""
    return _ask(run, address, lambda pipeline: pipeline.status.remote())


def scale(run: Path, rollouts: int, address: str | None = None) -> dict[str, Any]:
    """Have so many rollout actors; returns what `PipelineActor.scale` does. Raises as `_ask`."""
    return _ask(run, address, lambda pipeline: pipeline.scale.remote(rollouts))


def _ask(run: Path, address: str | None, call: Callable[[Any], Any]) -> dict[str, Any]:
    """The answer of the pipeline actor of what trains in a run folder; joins the cluster meanwhile. `address`: of the
    cluster, if not the one on record (another network's view of it). `call`: to the pipeline actor. Raises `RaftError`
    when nothing trains there, or its cluster does not answer, and what the pipeline raised."""
    found = find(run)
    record = read_json(found)
    if not isinstance(record, dict) or not {"address", "namespace", "pipeline"} <= record.keys():
        raise RaftError(f"{found}: not written by raft-ray; remove it, and end the run's processes by hand")
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    from actors.runtime.cluster import check_address, loopback
    from actors.runtime.remote import root_cause

    ours = not ray.is_initialized()
    where = address or record["address"]
    # Ray prints a cluster's warnings to stdout, where the answer belongs.
    with redirect_stdout(sys.stderr):
        try:
            if ours:
                check_address(where, "--address" if address else str(found))
                with loopback() if where.startswith("127.0.0.1:") else nullcontext():
                    ray.init(address=where, log_to_driver=False, configure_logging=False)
            pipeline = ray.get_actor(record["pipeline"], namespace=record["namespace"])
            answer: dict[str, Any] = ray.get(call(pipeline), timeout=_TIMEOUT)
            return answer
        except ray.exceptions.RayTaskError as error:
            raise root_cause(error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise RaftError(
                f"{run}: its pipeline actor has not answered for {_TIMEOUT:g} s; if it hangs, the run's driver "
                "kills it, and Ray starts it again"
            ) from error
        except (ConnectionError, ValueError, ray.exceptions.RayActorError) as error:
            raise RaftError(
                f"{run}: its Ray cluster at {where} does not answer, or the run has ended; see {found}"
            ) from error
        finally:
            if ours:
                ray.shutdown()
