"""Random deaths: a long run of the tiny model in which processes are killed at random states; nothing may be lost.

    make chaos SEED=0 ARGS="--kills 50 --out docs"

Any role may be hit at any state that it announces: rollout actors, teachers, learner ranks, the pipeline actor. Ends
with an error unless every row was trained exactly once per epoch and the result equals, bit for bit, that of the same
run without deaths. The seed decides who dies when; it is printed and written with the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from listener import Listener, Said
from rich.console import Console
from rich.table import Table
from run_files import outcome

from actors.run import train
from raft_ray.config import settings

BETWEEN = 40
"""Announcements between two deaths, on average."""


class Reaper:
    """A rule that kills whoever announces something at random times, `kills` times in all."""

    def __init__(self, kills: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._left = kills
        self._wait = self._random.randint(20, BETWEEN)

    def __call__(self, said: Said) -> str | None:
        self._wait -= 1
        if self._wait > 0 or self._left == 0:
            return None
        self._left -= 1
        self._wait = self._random.randint(1, 2 * BETWEEN)
        return str(said["who"])


def run(folder: Path, steps: int, kills: int) -> dict[str, Any]:
    """Train; returns what must not depend on deaths."""
    config = settings.load(
        "smoke",
        [
            f"run.dir={folder}",
            "refine.enabled=false",
            "distill.target=gold",
            "run.baselines=[]",
            "eval.enabled=false",
            f"learner.max_steps={steps}",
            f"learner.epochs={steps}",
            "learner.checkpoint_every=4",
            f"learner.max_restarts={kills + 1}",
            "rollout.actors=2",
            f"rollout.max_restarts={kills + 1}",
            f"teacher.max_restarts={kills + 1}",
            # A row that is hit by chance again and again must not pass for a poisoned one.
            f"rollout.max_failures={kills + 1}",
        ],
    )
    train(config)
    found = outcome(folder)
    # Of two actors whoever is free takes the next rollout batch, and the batch, not the actor, decides the sample.
    found["trace"] = [{key: value for key, value in line.items() if key != "rollout"} for line in found["trace"]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 50), ("seed", 0), ("steps", 220)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"seed {arguments.seed}, {arguments.kills} kills, {arguments.steps} steps")
    socket_path = Path(f"/tmp/raft-chaos-{os.getpid()}.sock")
    with tempfile.TemporaryDirectory() as temporary:
        whole = run(Path(temporary) / "whole", arguments.steps, 0)
        start = time.perf_counter()
        with Listener(socket_path, Reaper(arguments.kills, arguments.seed)) as listener:
            found = run(Path(temporary) / "killed", arguments.steps, arguments.kills)
        seconds = time.perf_counter() - start
    died = Counter(f"{said['victim'].split('-')[0]} {said['state']}" for said in listener.killed)
    table = Table("who and when", "deaths")
    for what, count in sorted(died.items()):
        table.add_row(what, str(count))
    console.print(table)
    rows = Counter((line["epoch"], line["row"]) for line in found["trace"])
    result = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "kills": len(listener.killed),
        "seconds": seconds,
        "deaths": dict(sorted(died.items())),
        "rows_trained_twice": sum(count > 1 for count in rows.values()),
        "equal": {key: found[key] == whole[key] for key in whole},
    }
    (arguments.out / "chaos.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(result)
    if not all(result["equal"].values()) or result["rows_trained_twice"]:
        sys.exit("the run with deaths differs from the one without")
    if len(listener.killed) < arguments.kills:
        sys.exit(
            f"only {len(listener.killed)} of {arguments.kills} kills fell into {arguments.steps} steps; raise --steps"
        )


if __name__ == "__main__":
    main()
