"""Memory of every process of a run over many steps of the tiny model; flat is what one wants to see.

    python benchmarks/soak.py [--steps 500] [--out docs]

Trains RAFT on the tiny model with `max_staleness=1` and two rollout actors, and reads the unique memory (USS) of every
process of the run and the shared memory in use every two seconds. Prints each process's memory early in training, when
a fifth of its steps were done, and at its end, and writes a picture and JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from actors.run import train
from raft_ray import settings

MIB = 2**20
Series = dict[str, list[tuple[float, float]]]


def role_of(process: psutil.Process) -> str | None:
    """What a descendant of ours is: an actor by its name, or a part of Ray."""
    title = " ".join(process.cmdline()[:1]) or process.name()
    for actor in ("RolloutActor", "TeacherActor", "PipelineActor", "RayTrainWorker", "TrainController"):
        if actor in title:
            return actor
    for part in ("raylet", "gcs_server"):
        if part in process.name():
            return part
    return None


def watch(
    stop: threading.Event,
    found: Series,
    shared: list[tuple[float, float]],
    metrics: Path,
    steps: int,
    marks: list[float],
) -> None:
    """Fill `found` and `shared`; `marks` gets the time at which `steps` steps were done."""
    start = time.perf_counter()
    while not stop.wait(2.0):
        now = time.perf_counter() - start
        if not marks and metrics.exists() and metrics.read_bytes().count(b"\n") >= steps:
            marks.append(now)
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                role = "driver" if process.pid == os.getpid() else role_of(process)
                if role is not None:
                    found[f"{role} ({process.pid})"].append((now, process.memory_full_info().uss / MIB))
            except psutil.Error:
                continue
        shared.append((now, psutil.virtual_memory().shared / MIB))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    series: Series = defaultdict(list)
    marks: list[float] = []
    shared: list[tuple[float, float]] = []
    stop = threading.Event()
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
        metrics_file = Path(folder) / "run" / "metrics.jsonl"
        watcher = threading.Thread(
            target=watch, args=(stop, series, shared, metrics_file, arguments.steps // 5, marks), daemon=True
        )
        watcher.start()
        start = time.perf_counter()
        train(config)
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        metrics = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    report(series, shared, metrics, seconds, marks[0], arguments.out)


def report(
    series: Series,
    shared: list[tuple[float, float]],
    metrics: list[dict[str, float]],
    seconds: float,
    mark: float,
    out: Path,
) -> None:
    table = Table("process", "MiB after a fifth of the steps", "MiB at the end", "growth")
    rows = {}
    for name, points in {**series, "shared memory of the machine": shared}.items():
        values = [value for at, value in points if at >= mark]
        if len(values) < 10:
            continue
        part = max(3, len(values) // 5)
        early, late = statistics.median(values[:part]), statistics.median(values[-part:])
        rows[name] = {"early_mib": early, "late_mib": late}
        table.add_row(name, f"{early:.0f}", f"{late:.0f}", f"{late / early - 1:+.1%}")
    peaks = [line["object_store_peak"] for line in metrics]
    console = Console()
    console.print(table)
    console.print(f"{len(metrics)} steps in {seconds:.0f} s; most bytes of samples and weights held: {max(peaks):,}")
    result = {"steps": len(metrics), "seconds": seconds, "object_store_peak": max(peaks), "processes": rows}
    (out / "benchmark-soak.json").write_text(json.dumps(result, indent=1) + "\n")
    draw({name: points for name, points in series.items() if name in rows}, out / "benchmark-soak.png")


def draw(series: Series, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        axes.plot([at for at, _ in points], [value for _, value in points], label=name.partition(" ")[0])
    axes.set_xlabel("seconds")
    axes.set_ylabel("memory of its own, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
