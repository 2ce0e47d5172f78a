"""Imports point one way: between the rooms, between the two packages, and from module to module.

All imports count, those inside functions too, but for those that only a type checker reads.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BELOW: dict[str, str] = {
    # Of raft_ray: what each room may import, beside itself.
    "cli": "compare report evaluate refine distill runs models data config checks preflight base",
    "preflight": "evaluate refine distill models data config checks base",
    "compare": "report evaluate runs models data config checks base",
    "checks": "evaluate refine models config base",
    "report": "evaluate refine distill runs models data config base",
    "evaluate": "refine models data config base",
    "refine": "models data config base",
    "runs": "distill models config base",
    "distill": "models data config base",
    "models": "data config base",
    "data": "config base",
    "config": "base",
    "base": "",
}
CLUSTER: dict[str, str] = {
    # Of actors; each may import all of raft_ray but the command line.
    "run": "refine distill evaluate engine runtime",
    "compare": "run refine distill evaluate engine runtime",
    "evaluate": "refine engine runtime",
    "refine": "engine runtime",
    "distill": "engine runtime",
    "engine": "runtime",
    "runtime": "",
}
COMMANDS = "cli"
"""The one room of raft_ray that may import actors, inside its functions."""


def modules() -> dict[str, Path]:
    paths = [path for package in ("raft_ray", "actors") for path in (ROOT / package).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    assert len(names) > 150
    return names


MODULES = modules()


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Each module of the two packages that a tree imports, and whether it does so inside a function."""
    walk: list[tuple[ast.AST, bool]] = [(tree, False)]
    while walk:
        node, inside = walk.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in MODULES else str(node.module)), inside
        elif isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        walk += [(child, inside) for child in ast.iter_child_nodes(node)]


IMPORTS = {
    name: {
        (other, inside)
        for other, inside in imported(ast.parse(path.read_text()))
        if other.split(".")[0] in ("raft_ray", "actors") and other != name
    }
    for name, path in MODULES.items()
}


def room(name: str) -> str:
    """`distill` of `raft_ray.distill.losses`; files at the top of raft_ray that belong to no room are the `base`."""
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    rooms = BELOW if package == "raft_ray" else CLUSTER
    return first if first in rooms else COMMANDS if first == "__main__" else "base"


def test_what_is_imported_is_there() -> None:
    """A type checker that passes over libraries without types passes over these, too."""
    assert not [(name, other) for name, others in IMPORTS.items() for other, _ in others if other not in MODULES]


def test_every_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for name, others in IMPORTS.items():
        for other, _ in others:
            if name.split(".")[0] == other.split(".")[0]:
                rooms = BELOW if name.startswith("raft_ray") else CLUSTER
                if room(name) != room(other) and room(other) not in rooms[room(name)].split():
                    wrong.append(f"{name} imports {other}")
    assert not wrong


def test_the_method_knows_nothing_of_the_cluster_but_for_the_commands_inside_their_functions() -> None:
    for name, others in IMPORTS.items():
        for other, inside in others:
            if name.startswith("raft_ray") and other.startswith("actors"):
                assert room(name) == COMMANDS, f"{name} imports {other}"
                assert inside, f"{name} imports {other} when it is itself imported"
            if name.startswith("actors") and other.startswith("raft_ray"):
                assert room(other) != COMMANDS, f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {other for other, _ in others} for name, others in IMPORTS.items()}
    for name, others in graph.items():
        # A package's own names come from its modules, which may use one another.
        graph[name] = {other for other in others if not name.startswith(f"{other}.")}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "module", ["raft_ray", "raft_ray.config.settings", "raft_ray.cli.app", "raft_ray.distill.losses"]
)
def test_the_method_and_the_command_line_load_no_cluster(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('ray', 'vllm', 'deepspeed') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
