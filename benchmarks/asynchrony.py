"""Seconds per step by phase, synchronous against asynchronous, with a real model, in one run, in turn.

    python benchmarks/asynchrony.py [--steps 12] [--rounds 2] [--out docs] [KEY=VALUE ...]

Trains RAFT on 64 facts of chemistry with `max_staleness` 0, 1, and 1 with weights in flight, one after the other, as
many rounds as asked for. The first three steps of each run, which wait for engines, are left out. Prints the medians
over all rounds and writes JSON. Where all roles share the same few cores, overlap cannot make a step shorter than the
sum of its work; on a machine with an accelerator a role it can.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.run import train
from raft_ray.config import settings

WAYS = {
    "synchronous": ["sync.max_staleness=0"],
    "asynchronous": ["sync.max_staleness=1"],
    "asynchronous, in flight": ["sync.max_staleness=1", "sync.in_flight=true"],
}
WARM_UP = 3
PHASES = ("total", "wait", "rollout", "teacher", "load", "forward_backward", "optimizer", "sync")


def seconds(way: list[str], steps: int, overrides: list[str]) -> list[dict[str, float]]:
    """Seconds by phase of every step after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings.load(
            "demo",
            [
                f"run.dir={folder}/run",
                "run.baselines=[]",
                "data.train=domain:chemistry:64",
                "refine.enabled=false",
                "distill.target=gold",
                "eval.enabled=false",
                f"learner.max_steps={steps}",
                "learner.epochs=1000",
                *way,
                *overrides,
            ],
        )
        train(config)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["seconds"] for line in lines[WARM_UP:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, way in WAYS.items():
            found[name] += seconds(way, WARM_UP + arguments.steps, arguments.overrides)
    medians = {name: {p: statistics.median(step[p] for step in steps) for p in PHASES} for name, steps in found.items()}
    table = Table("seconds per step", *PHASES, "ratio")
    first = medians["synchronous"]["total"]
    for name, phases in medians.items():
        table.add_row(name, *(f"{phases[p]:.2f}" for p in PHASES), f"{phases['total'] / first:.2f}")
    Console(width=120).print(table)
    (arguments.out / "benchmark-asynchrony.json").write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
