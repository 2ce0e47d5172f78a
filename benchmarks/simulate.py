"""Scaling and overlap of the pipeline, with engines that only wait: the real pipeline actor, capacity rule and Ray.

    python benchmarks/simulate.py scaling [--rollouts 1 8 64 256 1024] [--row-seconds 0.5]
                                                                            rows/s against rollout actors
    python benchmarks/simulate.py overlap                                   step time against its slowest role
    python benchmarks/simulate.py elastic                                   the min/max policy finds the number it needs

Only the engines' computing is replaced, by waits of fixed length; calls, references, versions and the books are those
of a run. In `scaling` a few processes wait for all rollout actors, since a thousand do not fit on a machine; each is
called as if it were alone. Prints a table and writes JSON and a picture to --out (docs/).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from rich.console import Console
from rich.table import Table

from actors.distill.pipeline import PipelineActor
from actors.engine.weight_sync import WeightVersion
from actors.runtime import cluster
from raft_ray.config import Config, settings
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import RolloutBatch, Sample, SampleInfo, Trajectory
from raft_ray.models.prompts import EncodedRow

TOKENS, KEPT = 16, 64


@dataclass(frozen=True)
class Times:
    """Seconds: of a row in a rollout engine, of a row in a teacher, of a step in the learners, of taking up weights."""

    rollout: float
    teacher: float
    learner: float
    load: float = 0.05


class WaitingRollout:
    """A rollout actor whose engine waits."""

    def __init__(self, times: Times, name: str) -> None:
        self._times, self._name, self._version = times, name, -1

    def ready(self) -> str:
        return "simulated"

    def load_weights(self, weights: WeightVersion) -> float:
        time.sleep(self._times.load)
        self._version = weights.version
        return self._times.load

    def generate(self, rollout_batch: RolloutBatch) -> tuple[list[SampleInfo], list[Trajectory]]:
        time.sleep(self._times.rollout * len(rollout_batch.sample_ids))
        ids = np.zeros(TOKENS, dtype=np.int32)
        made = [Trajectory(place, self._version, ids, False, self._name) for place in rollout_batch.sample_ids]
        return [each.info for each in made], made


class WaitingRollouts:
    """Many rollout actors that wait, in one process: every call says for which of them it is."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._versions: dict[str, int] = {}

    async def ready(self, name: str) -> str:
        return "simulated"

    async def load_weights(self, name: str, weights: WeightVersion) -> float:
        await asyncio.sleep(self._times.load)
        self._versions[name] = weights.version
        return self._times.load

    async def generate(self, name: str, rollout_batch: RolloutBatch) -> tuple[list[SampleInfo], list[Trajectory]]:
        await asyncio.sleep(self._times.rollout * len(rollout_batch.sample_ids))
        ids = np.zeros(TOKENS, dtype=np.int32)
        made = [Trajectory(place, self._versions[name], ids, False, name) for place in rollout_batch.sample_ids]
        return [each.info for each in made], made


class OneOfMany:
    """The handle of one rollout actor in a process of many."""

    def __init__(self, process: Any, name: str) -> None:
        self._process, self._name = process, name

    def __getattr__(self, method: str) -> OneOfMany:
        return OneOfMany(getattr(self._process, method), self._name)

    def options(self, **options: Any) -> OneOfMany:
        return OneOfMany(self._process.options(**options), self._name)

    def remote(self, *arguments: Any) -> Any:
        return self._process.remote(self._name, *arguments)


def one_of_many(processes: list[Any], times: Times, table: list[Any], name: str) -> OneOfMany:
    """The handle of a waiting rollout actor; with all but the last two bound, what makes them."""
    del times, table
    return OneOfMany(processes[int(name.rpartition("-")[2]) % len(processes)], name)


class WaitingTeacher:
    """A teacher whose forward passes wait."""

    def __init__(self, times: Times, name: str) -> None:
        del name
        self._times = times

    def ready(self) -> str:
        return "simulated"

    def score(self, trajectories: list[Trajectory]) -> list[object]:
        seconds = self._times.teacher * len(trajectories)
        time.sleep(seconds)
        ids, values = np.zeros((TOKENS, KEPT), dtype=np.int32), np.zeros((TOKENS, KEPT), dtype=np.float16)
        samples = [Sample(t, ids, values) for t in trajectories]
        return [([sample.info(1.0) for sample in samples], seconds), *samples]


def waiting(actor: type, times: Times, table: list[Any], name: str) -> Any:
    """Start a waiting actor; with all but the last two bound, what the pipeline actor makes its actors with."""
    del table
    return ray.remote(actor).options(num_cpus=0).remote(times, name)


def simulate(
    times: Times,
    *,
    rollouts: int,
    batch: int,
    staleness: int,
    steps: int,
    warm: int = 2,
    make: Any = None,
    **keys: Any,
) -> tuple[list[float], list[dict[str, Any]], list[str]]:
    """Run `steps` steps; returns the seconds of each after the first `warm`, the metrics of all, and each scaling."""
    config = configured(rollouts, batch, staleness, **keys)
    order = RowOrder(rows=batch * steps, batch=batch, epochs=1, seed=0)
    table = {row: EncodedRow(row, [0] * 8, [0] * 8, [0] * 8) for row in range(order.rows)}
    with tempfile.TemporaryDirectory() as folder:
        pipeline: Any = (
            ray.remote(PipelineActor)
            .options(num_cpus=0)
            .remote(
                config,
                order,
                folder,
                make or partial(waiting, WaitingRollout, times),
                partial(waiting, WaitingTeacher, times),
            )
        )
        packed = ray.put("weights")
        ray.get(pipeline.begin.remote(WeightVersion(0, packed), [ray.put(table)]))
        process = psutil.Process(ray.get(pipeline.__ray_call__.remote(lambda _: os.getpid())))
        ends, cpu = [], []
        for step in range(steps):
            start = time.perf_counter()
            batch_refs = ray.get(pipeline.next_batch.remote(step, 0, 1))
            ray.get([refs[0] for _, refs, _ in batch_refs])
            wait = time.perf_counter() - start
            time.sleep(times.learner)
            total = time.perf_counter() - start
            record = {
                "loss": 0.0,
                "tokens": 0,
                "seconds": {"wait": wait, "forward_backward": times.learner, "total": total},
            }
            ray.get(pipeline.publish.remote(WeightVersion(step + 1, packed), record))
            ends.append(time.perf_counter())
            cpu.append(sum(process.cpu_times()[:2]))
        metrics, events = (lines(Path(folder) / f"{name}.jsonl") for name in ("metrics", "events"))
        ray.kill(pipeline)
    seconds = [b - a for a, b in pairwise(ends)]
    for line, (before, after) in zip(metrics[1:], pairwise(cpu), strict=True):
        line["pipeline_cpu"] = after - before
    return seconds[warm:], metrics, [event["text"] for event in events if event["what"] == "scale"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def configured(rollouts: int, batch: int, staleness: int, **keys: Any) -> Config:
    return settings.load(
        "raft",
        [
            "data.train=unused.jsonl",
            f"rollout.actors={rollouts}",
            f"learner.global_batch_size={batch}",
            f"sync.max_staleness={staleness}",
            # They compute nothing, so any number fits.
            "rollout.num_cpus=0",
            *(f"{key}={value}" for key, value in keys.items()),
        ],
    )


def scaling(counts: list[int], row_seconds: float, steps: int, console: Console) -> dict[str, Any]:
    """As many rows per step for each actor: perfect scaling keeps the step time."""
    rows, times, teachers = 4, Times(rollout=row_seconds, teacher=0.0, learner=0.0), 2
    processes = [
        ray.remote(WaitingRollouts).options(num_cpus=0, max_concurrency=2 * max(counts)).remote(times) for _ in range(2)
    ]
    table = Table("rollout actors", "rows/s", "of ideal", "dispatch, share of a step", "pipeline's CPU, ms per batch")
    found: list[dict[str, float]] = []
    for count in counts:
        seconds, metrics, _ = simulate(
            times,
            rollouts=count,
            batch=rows * count,
            staleness=1,
            steps=steps,
            make=partial(one_of_many, processes, times),
            **{"teacher.actors": teachers},
        )
        step = statistics.median(seconds)
        # An actor takes up weights, then makes its rows.
        ideal = times.load + rows * times.rollout
        dispatch = statistics.median(line["seconds"]["dispatch"] for line in metrics[2:])
        cpu = statistics.median(line["pipeline_cpu"] for line in metrics[2:])
        found.append(
            {
                "rollouts": count,
                "rows_per_second": rows * count / step,
                "of_ideal": ideal / step,
                "dispatch_share": dispatch / step,
                "pipeline_cpu": cpu,
            }
        )
        point = found[-1]
        table.add_row(
            str(count),
            f"{point['rows_per_second']:.1f}",
            f"{point['of_ideal']:.3f}",
            f"{point['dispatch_share']:.4f}",
            f"{1000 * cpu / count:.2f}",
        )
    console.print(table)
    return {"rows_per_actor": rows, "times": vars(times), "points": found}


def overlap(console: Console) -> dict[str, Any]:
    """Two rollout actors, one teacher, 16 rows per step in rollout batches of one row: seconds per step by role."""
    cases = [(2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0), (2.0, 0.5, 2.0), (2.0, 2.0, 0.5), (1.0, 1.0, 1.0)]
    table = Table("rollout, s", "teacher, s", "learner, s", "staleness", "step, s", "bound, s", "step / bound")
    found = []
    for rollout, teacher, learner in cases:
        # Two actors share the batch's rollouts.
        times = Times(rollout=2 * rollout / 16, teacher=teacher / 16, learner=learner, load=0.02)
        for staleness in (0, 1):
            seconds, _, _ = simulate(
                times, rollouts=2, batch=16, staleness=staleness, steps=11, warm=3, **{"rollout.batch_rows": 1}
            )
            step, bound = statistics.mean(seconds), max(rollout, teacher, learner)
            found.append(
                {
                    "rollout": rollout,
                    "teacher": teacher,
                    "learner": learner,
                    "staleness": staleness,
                    "step": step,
                    "bound": bound,
                }
            )
            table.add_row(
                str(rollout),
                str(teacher),
                str(learner),
                str(staleness),
                f"{step:.2f}",
                f"{bound:.2f}",
                f"{step / bound:.2f}",
            )
    console.print(table)
    return {"points": found}


def elastic(console: Console) -> dict[str, Any]:
    """Rollouts of 4 s a step for one actor against a learner of 1 s: the policy should find about four actors."""
    times = Times(rollout=4.0 / 16, teacher=0.0, learner=1.0, load=0.02)
    keys = {"rollout.min_actors": 1, "rollout.max_actors": 8, "rollout.batch_rows": 1}
    seconds, _, scaled = simulate(times, rollouts=1, batch=16, staleness=1, steps=30, warm=0, **keys)
    table = Table("step", "seconds")
    for step, value in enumerate(seconds, start=1):
        table.add_row(str(step), f"{value:.2f}")
    console.print(table)
    console.print(scaled)
    return {"times": vars(times), "seconds": seconds, "scaled": scaled}


def draw(what: str, result: dict[str, Any], path: Path) -> None:
    """The picture for the docs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if what == "scaling":
        counts = [point["rollouts"] for point in result["points"]]
        rates = [point["rows_per_second"] for point in result["points"]]
        axes.loglog(counts, [rates[0] * count / counts[0] for count in counts], "--", color="#999999", label="linear")
        axes.loglog(counts, rates, "o-", color="#0b6e99", label="measured")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("rollout actors")
        axes.set_ylabel("rows per second")
    elif what == "overlap":
        points = result["points"]
        names = [f"{p['rollout']:g} / {p['teacher']:g} / {p['learner']:g}" for p in points[::2]]
        at = np.arange(len(names))
        axes.bar(at - 0.2, [p["step"] for p in points[::2]], 0.4, color="#c8c8c8", label="max_staleness=0")
        axes.bar(at + 0.2, [p["step"] for p in points[1::2]], 0.4, color="#0b6e99", label="max_staleness=1")
        axes.hlines([p["bound"] for p in points[::2]], at - 0.45, at + 0.45, color="#d1495b", label="slowest role")
        axes.set_xticks(at, names)
        axes.set_xlabel("seconds per step of rollouts / teacher / learner")
        axes.set_ylabel("seconds per step")
    else:
        axes.plot(range(1, len(result["seconds"]) + 1), result["seconds"], "o-", color="#0b6e99", label="measured")
        axes.axhline(1.0, linestyle="--", color="#999999", label="the learner alone")
        axes.set_xlabel("step")
        axes.set_ylabel("seconds per step")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scaling", "overlap", "elastic"))
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1, 8, 64, 256, 1024])
    parser.add_argument("--row-seconds", type=float, default=0.5, help="what an engine of `scaling` waits for a row")
    parser.add_argument("--steps", type=int, default=7, help="of `scaling`, of which the first two do not count")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    local = Config()
    local.run.local_cpus = 4
    cluster.start(local)
    try:
        if arguments.what == "scaling":
            result = scaling(arguments.rollouts, arguments.row_seconds, arguments.steps, console)
        elif arguments.what == "overlap":
            result = overlap(console)
        else:
            result = elastic(console)
    finally:
        cluster.stop()
    (arguments.out / f"benchmark-{arguments.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(arguments.what, result, arguments.out / f"benchmark-{arguments.what}.png")


if __name__ == "__main__":
    main()
