"""A whole node dies: its actors start again on another, and the result is the one that nothing disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from listener import Listener, once
from nodes import node_of, running_nodes
from run_files import outcome

from raft_ray.config import Config

MakeConfig = Callable[..., Config]
KEYS = ("learner.max_steps=4", "learner.checkpoint_every=1")


@pytest.fixture
def three_nodes(undisturbed_run: Path) -> Iterator[tuple[Any, list[Any]]]:
    """A head with room for the pipeline actor alone, and two nodes of which each can hold all other roles."""
    with running_nodes(1, 4, 4) as found:
        yield found


def test_a_node_that_dies_takes_nothing_with_it(
    undisturbed_run: Path,
    three_nodes: tuple[Any, list[Any]],
    make_config: MakeConfig,
    tmp_path: Path,
    socket_path: Path,
) -> None:
    import ray

    from actors.run import train

    cluster, nodes = three_nodes
    gone: list[str] = []

    def remove(_: dict[str, Any]) -> None:
        """The node that runs the rollout actor."""
        (node,) = [node for node in nodes if node.node_id == node_of(listener.pids["rollout-0"])]
        gone.append(node.node_id)
        cluster.remove_node(node, allow_graceful=False)

    with Listener(socket_path, once("learner-0", "forward", 1), act=remove) as listener:
        parts = train(make_config(tmp_path / "parts", *KEYS)).parent
    assert len(gone) == 1
    assert not any(node["Alive"] and node["NodeID"] == gone[0] for node in ray.nodes())
    assert outcome(parts) == outcome(undisturbed_run)
