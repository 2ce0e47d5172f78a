"""Stage 1 over several nodes: engines where there is room, files where the run is, and the rows of one engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listener import Listener, Said
from nodes import node_of, running_nodes
from refine_runs import TINY_REFINE, make_config, refine, tiny_rows


@pytest.fixture
def three_nodes(forks: None) -> Iterator[Any]:
    """A head without CPUs, and two nodes with room for one engine each."""
    with running_nodes(0, 1, 1) as (cluster, _):
        yield cluster


def test_engines_on_two_nodes_give_the_rows_of_one_engine(three_nodes: Any, tmp_path: Path, socket_path: Path) -> None:
    nodes: dict[str, str] = {}

    def note(said: Said) -> None:
        nodes[said["who"]] = node_of(said["pid"])

    with Listener(socket_path, note):
        many = refine(make_config(tmp_path / "many", tiny_rows(11), **(TINY_REFINE | {"actors": 2})))
    head = three_nodes.head_node.node_id
    engines = {nodes["refine-self-0"], nodes["refine-self-1"]}
    assert len(engines) == 2
    assert head not in engines
    assert nodes["refine-write"] == nodes["refine-cache"] == head
    assert refine(make_config(tmp_path / "one", tiny_rows(11), **TINY_REFINE)) == many
