"""Memory of every process of a run over many steps of the tiny model; flat is what one wants to see.

    python benchmarks/soak.py [--steps 500] [--out docs]

Trains RAFT on the tiny model with `max_staleness=1` and two rollout actors. Prints each process's memory early in
training, when a fifth of its steps were done, and at its end, and writes a picture and JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from memory import MemoryWatch
from rich.console import Console

from actors.run import train
from raft_ray.config import settings

ROLES = {
    "RolloutActor": "rollout actor",
    "TeacherActor": "teacher actor",
    "PipelineActor": "pipeline actor",
    "RayTrainWorker": "learner",
    "TrainController": "Ray Train's controller",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        config = settings.load(
            "smoke",
            [
                f"run.dir={folder}/run",
                "refine.enabled=false",
                "distill.target=gold",
                "run.baselines=[]",
                "eval.enabled=false",
                f"learner.max_steps={arguments.steps}",
                f"learner.epochs={arguments.steps}",
                "learner.checkpoint_every=100",
                "sync.max_staleness=1",
                "sync.in_flight=true",
                "rollout.actors=2",
            ],
        )
        metrics = Path(folder) / "run" / "metrics.jsonl"

        def early() -> bool:
            return metrics.exists() and metrics.read_bytes().count(b"\n") >= arguments.steps // 5

        start = time.perf_counter()
        with MemoryWatch(ROLES, early) as watch:
            train(config)
        seconds = time.perf_counter() - start
        peak = max(json.loads(line)["object_store_peak"] for line in metrics.read_text().splitlines())
    console = Console()
    watch.print(console)
    console.print(f"{arguments.steps} steps in {seconds:.0f} s; most bytes of samples and weights held: {peak:,}")
    result = {
        "steps": arguments.steps,
        "seconds": seconds,
        "object_store_peak": peak,
        "processes": watch.growth(),
    }
    (arguments.out / "benchmark-soak.json").write_text(json.dumps(result, indent=1) + "\n")
    watch.draw(arguments.out / "benchmark-soak.png")


if __name__ == "__main__":
    main()
