"""Commands for a run that is going on: what it does, and more or fewer rollout actors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raft_ray.cli.app import DURING, command

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that is going on.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Its Ray cluster, if not the one on record in the folder."),
]


@command("status", DURING)
def status(
    run: RunFolder,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a run is doing, and which role holds the others up.

    Actors, versions of the weights, the queue, and rates.

    [bold]Examples[/bold]
      raft-ray status runs/demo
      watch raft-ray status runs/demo
    """
    from actors.runtime.attach import status as ask

    found = ask(run.absolute(), address)
    if as_json:
        print(json.dumps(found))
        return
    from raft_ray.runs.status import status_view

    Console().print(status_view(found))


@command("scale", DURING)
def scale(
    run: RunFolder,
    rollouts: Annotated[int, typer.Option("--rollouts", metavar="N", min=1, help="Rollout actors from now on.")],
    address: Address = None,
) -> None:
    """Add or remove rollout actors of a run while it goes on.

    Its learners do not pause. New actors start where the cluster has room,
    at once or when it gets some (nodes that join); teachers and learners keep
    theirs. Superfluous ones leave after the rollout batch that they are on. The policy
    of rollout.min_actors and rollout.max_actors is switched off by it.

    [bold]Example[/bold]
      raft-ray scale runs/demo --rollouts 4
    """
    from actors.runtime.attach import scale as resize

    found = resize(run.absolute(), rollouts, address)
    note = f" ({found['now']} now; {found['waits']})" if found["waits"] else ""
    print(f"rollout actors: {found['before']} -> {rollouts}{note}")
