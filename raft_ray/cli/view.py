"""Commands to look with: a run's report after it, its config before it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax

from raft_ray.cli.app import BEFORE, ConfigArgument, Overrides, command, load, say
from raft_ray.config import settings
from raft_ray.config.explain import explained
from raft_ray.errors import ConfigError


@command("report")
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]) -> None:
    """Write a run's reports anew from the files in its folder.

    These are RUN/report.html, and RUN/refine_report.html for stage 1.

    [bold]Example[/bold]
      raft-ray report runs/demo
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    from raft_ray.report import REFINE_REPORT, write_report

    path = write_report(run)
    say("report", path)
    if (run / "refined").is_dir() and path.with_name(REFINE_REPORT).exists():
        say("report of stage 1", path.with_name(REFINE_REPORT))


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
    text = explained(loaded) if explain else settings.to_yaml(loaded)
    if sys.stdout.isatty():
        Console().print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")
