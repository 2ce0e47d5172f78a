"""Commands to look with before a run: its config and its prompts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax

from raft_ray.checks import check
from raft_ray.cli.app import BEFORE, ConfigArgument, Overrides, command, load
from raft_ray.config import settings


@command("show-config", BEFORE)
def show_config(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what every key means.")] = False,
) -> None:
    """Print all keys with the values that a run would have.

    The output is itself a config file.

    [bold]Examples[/bold]
      raft-ray show-config raft --explain
      raft-ray show-config cluster learner.num_workers=16 > mine.yaml
    """
    loaded = load(config, overrides)
    text = settings.explained(loaded) if explain else settings.to_yaml(loaded)
    if sys.stdout.isatty():
        Console().print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")


@command("show-prompts", BEFORE)
def show_prompts(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    row: Annotated[int, typer.Option("--row", min=0, help="Index of the training row.")] = 0,
) -> None:
    """Print what the models read for one training row.

    What student, teacher and rewriter read, token for token.

    [bold]Examples[/bold]
      raft-ray show-prompts demo --row 7
      raft-ray show-prompts raft data.train=train.jsonl teacher.template=my.txt
    """
    loaded = load(config, overrides)
    check(loaded)
    from raft_ray import preflight

    preflight.show_prompts(loaded, row, Console())
