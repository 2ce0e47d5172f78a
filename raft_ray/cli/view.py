"""Commands to look with before a run: config, prompts, this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from raft_ray.checks import check
from raft_ray.cli.app import ConfigArgument, Overrides, app, load
from raft_ray.cli.doctor import Verdict, examine
from raft_ray.config import settings
from raft_ray.config.explain import explained
from raft_ray.printable import plain


@app.command()
def show_config(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what every key means.")] = False,
) -> None:
    """Print all keys with the values that a run would have. The output is itself a config file.

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


@app.command()
def show_prompts(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    row: Annotated[int, typer.Option("--row", min=0, help="Index of the training row.")] = 0,
) -> None:
    """Print what student, teacher and rewriter read for one training row, token for token.

    [bold]Examples[/bold]

      raft-ray show-prompts demo --row 7

      raft-ray show-prompts raft data.train=train.jsonl teacher.template=my-teacher.txt
    """
    loaded = load(config, overrides)
    check(loaded)
    from raft_ray import preflight

    preflight.show_prompts(loaded, row, Console())


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH", help="Check this model folder as well.")
    ] = None,
) -> None:
    """Check this machine: versions, memory, GPUs, packages, Ray's token. Exit code 1 if something must be mended.

    [bold]Examples[/bold]

      raft-ray doctor

      raft-ray doctor --model ./my-model
    """
    table = Table("", "what", "found", "fix")
    findings = examine(model)
    colours = {Verdict.ok: "green", Verdict.warn: "yellow", Verdict.fail: "red"}
    for finding in findings:
        table.add_row(
            f"[{colours[finding.verdict]}]{finding.verdict.value}[/]",
            plain(finding.what),
            plain(finding.found),
            plain(finding.fix),
        )
    Console().print(table)
    if any(finding.verdict is Verdict.fail for finding in findings):
        raise typer.Exit(1)
