"""Foreign text reaches the terminal as text: no control characters, no markup, one line where a line is promised."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from raft_ray.cli import app
from raft_ray.evaluate.table import summary_table
from raft_ray.printable import one_line, plain, printable
from raft_ray.runs.status import status_view

ROOT = Path(__file__).parents[2]
HARMFUL = "\x1b[31mred\x1b[0m \r \x07 \x9b2J \u202e \ud800 \0 [/bold] [red]"


@given(st.text(st.characters()))
def test_printable_text_can_be_written_and_does_nothing(text: str) -> None:
    assert not set(printable(text)) & {"\x1b", "\r", "\x07", "\x9b", "\u202e", "\0"}
    printable(text).encode()
    assert "\n" not in one_line(text)
    assert printable(printable(text)) == printable(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_square_brackets_are_text() -> None:
    console = Console(file=io.StringIO(), width=400)
    console.print(f"[bold]{plain(HARMFUL)}[/]", highlight=False)
    assert "[/bold] [red]" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[31mred" in console.file.getvalue()  # type: ignore[attr-defined]


def test_tables_print_names_from_files_as_text() -> None:
    console = Console(file=io.StringIO(), width=400)
    console.print(summary_table({"main": "x", "methods": {HARMFUL: {}}}))
    actor = {"name": HARMFUL, "node": HARMFUL, "state": "idle", "version": 1, "rows": 1, "restarts": 0, "seconds": 1.0}
    status = {"step": 1, "steps": 2, "version": 1, "learners": 1, "rates": None, "last": None, "advice": ""}
    queue = {"in_flight": 0, "ready": 0, "limit": 1, "came_back": 0, "quarantined": 0}
    console.print(
        status_view({**status, "error": HARMFUL, "actors": [actor], "ranks": [], "waits_for_room": "", "queue": queue})
    )
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.count("[/bold] [red]") == 4
    assert not set(written) & {"\x1b", "\x07", "\x9b", "\0"}


@pytest.mark.parametrize("arguments", [["run", "no\x1b[31m[/bold]such"], ["export", "a\x1b[2J", "b"]])
def test_errors_of_the_command_line_are_one_printable_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "\x1b" not in result.stderr
    assert "\\x1b[" in result.stderr


def test_every_value_that_is_printed_with_markup_is_made_plain() -> None:
    found = []
    for path in [*ROOT.glob("actors/**/*.py"), *ROOT.glob("raft_ray/**/*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
                continue
            if call.func.attr not in ("print", "rule") or "console" not in ast.unparse(call.func.value).lower():
                continue
            found += [f"{path.name}: {ast.unparse(value.value)}" for value in _harmful(call.args[0])]
    # What `running` says it makes plain where it puts it together.
    assert sorted(found) == ["run.py: model", "run.py: what"]


def _harmful(node: ast.AST) -> list[ast.FormattedValue]:
    """Values in formatted strings that are neither made plain, nor numbers, nor words of the module's own."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("plain", "len"):
        return []
    if isinstance(node, ast.FormattedValue) and not isinstance(node.value, ast.Call):
        own = node.format_spec is not None or ast.unparse(node.value) in ("name", "label", "style")
        return [] if own else [node]
    found = [value for child in ast.iter_child_nodes(node) for value in _harmful(child)]
    is_call = isinstance(node, ast.FormattedValue) and ast.unparse(node.value.func) not in ("plain", "len")  # type: ignore[attr-defined]
    return [node, *found] if is_call else found  # type: ignore[list-item]
