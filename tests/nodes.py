"""A Ray cluster of several nodes on this machine, for the tests of what lies on which and of nodes that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def running_nodes(head: int, *others: int) -> Iterator[tuple[Any, list[Any]]]:
    """For the block this process and what it starts are on a cluster of a head and other nodes, each with so many CPUs.

    Yields the `Cluster` and its other nodes.
    """
    import ray
    from ray.cluster_utils import Cluster

    # The test process's own cluster has other CPUs.
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        # A dead node is noticed after 5 of them, 3 s each by themselves.
        patch.setenv("RAY_health_check_period_ms", "1000")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False})
        try:
            nodes = [cluster.add_node(num_cpus=cpus) for cpus in others]
            patch.setenv("RAY_ADDRESS", cluster.address)
            ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


def node_of(pid: int) -> str:
    """Id of the node whose worker the process is."""
    import ray._private.state
    from ray.core.generated.gcs_pb2 import WorkerTableData

    table = ray._private.state.state._connect_and_get_accessor().get_worker_table()
    workers = [WorkerTableData.FromString(one) for one in table]
    (node,) = [one.worker_address.node_id.hex() for one in workers if one.pid == pid and one.is_alive]
    return node
