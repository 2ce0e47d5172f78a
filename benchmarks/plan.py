"""The memory plan against what processes take: a learner rank and a teacher on the CPU, each alone in a process.

    python benchmarks/plan.py [--model embedded:smollm2-135m-instruct] [--dtype bfloat16] [--zero 1] [--rank 0] \
        [--tokens 2048] [--length 512] [--checkpointing]

A child process does its role's work with the tiny model on few tokens, which brings in all libraries. Then it loads its
own model and takes three steps or scores three batches: by how much its resident memory gets higher is printed beside
the plan's number, and written to `benchmark-plan.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raft_ray import models
from raft_ray.config import Config, settings
from raft_ray.distill.memory import Need, make_plan
from raft_ray.machine import this_machine

MIB = 2**20
# Blocks of memory that are freed go back to the system at once, in every thread.
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


def resident(what: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` the highest since `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def forget() -> None:
    """The highest resident memory is that of now."""
    Path("/proc/self/clear_refs").write_text("5")


def batch(config: Config, length: int, vocabulary: int, tokens: int) -> tuple[list[Any], list[Any]]:
    """Rows of `length` tokens together, half answer and half response beside a prompt of eight, and their samples."""
    from raft_ray.distill.order import SampleId
    from raft_ray.distill.trajectory import Sample, Trajectory
    from raft_ray.models.prompts import EncodedRow

    random, kept = np.random.default_rng(0), min(config.distill.top_k, vocabulary)
    half = (length - 8) // 2

    def ids(count: int) -> list[int]:
        return random.integers(3, vocabulary, count).tolist()

    count = max(1, tokens // length)
    rows = [EncodedRow(i, ids(8), ids(half), ids(8)) for i in range(count)]
    samples = [
        Sample(
            Trajectory(SampleId(0, i), 0, np.asarray(ids(half), dtype=np.int32), False, ""),
            random.integers(0, vocabulary, (half, kept)).astype(np.int32),
            np.log(random.dirichlet(np.ones(kept), half)).astype(np.float16),
        )
        for i in range(count)
    ]
    return rows, samples


def learner(config: Config, folder: str, tokens: int) -> Callable[[], Callable[[], None]]:
    """What makes an engine and returns three steps of it. Its rows, of Ray's store in a run, are there before."""
    from actors.distill.student_engine import make_engine
    from raft_ray.distill.losses import EmaBalancer
    from raft_ray.distill.step import train_step
    from raft_ray.distill.student import make_micro_batches

    length = min(config.model.context or tokens, tokens)
    rows, samples = batch(config, length, models.vocabulary_size(folder, config.model), tokens)

    def load() -> Callable[[], None]:
        engine = make_engine(config, folder)

        def work() -> None:
            for _ in range(3):
                batches = make_micro_batches(rows, samples, total=len(rows), tokens=tokens, share_prompt=True)
                train_step(engine, batches, balancer=EmaBalancer(), ranks=1, keep_graph=False, reduce=list)

        return work

    return load


def teacher(config: Config, folder: str, tokens: int) -> Callable[[], Callable[[], None]]:
    """What loads a model, and returns three batches that it scores."""
    from raft_ray.distill.teacher import score

    length = min(config.model.context or tokens, tokens)
    random, vocabulary = np.random.default_rng(0), models.vocabulary_size(folder, config.model)
    count = max(1, tokens // length)
    prompts = [random.integers(3, vocabulary, 1).tolist() for _ in range(count)]
    responses = [random.integers(3, vocabulary, length - 1).astype(np.int32) for _ in range(count)]

    def load() -> Callable[[], None]:
        model = models.load_model(folder, config.model).eval().requires_grad_(False)

        def work() -> None:
            for _ in range(3):
                score(model, prompts, responses, top_k=config.distill.top_k, tokens=tokens)

        return work

    return load


def child(role: str, overrides: list[str]) -> None:
    """Print what a role's process takes beyond one that has done the same with the tiny model and few tokens."""
    make = {"learner": learner, "teacher": teacher}[role]
    small = settings.load("raft", [*overrides, "model.path=random:tiny"])
    make(small, models.resolve("random:tiny"), 64)()()
    config = settings.load("raft", overrides)
    tokens = config.learner.max_tokens_per_microbatch if role == "learner" else config.teacher.tokens
    load = make(config, models.resolve(config.model.path), tokens)
    gc.collect()
    before = resident("VmRSS")
    work = load()
    gc.collect()
    forget()
    work()
    print(json.dumps({"resident": resident("VmHWM") - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=models.EMBEDDED)
    parser.add_argument("--dtype", default="bfloat16")
    for name, default in (("zero", 1), ("rank", 0), ("tokens", 2048), ("length", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--role", choices=["learner", "teacher"])
    arguments = parser.parse_args()
    overrides = [
        "data.train=domain:chemistry",
        f"model.path={arguments.model}",
        f"model.dtype={arguments.dtype}",
        f"model.context={arguments.length}",
        "learner.global_batch_size=1000",
        f"learner.zero_stage={arguments.zero}",
        f"learner.lora.rank={arguments.rank}",
        f"learner.max_tokens_per_microbatch={arguments.tokens}",
        f"learner.gradient_checkpointing={str(arguments.checkpointing).lower()}",
        f"teacher.tokens={arguments.tokens}",
    ]
    if arguments.role:
        return child(arguments.role, overrides)
    config = settings.load("raft", overrides)
    folder = models.resolve(arguments.model)
    plan = make_plan(config, folder, folder, this_machine())
    needs: dict[str, Need] = {need.role: need for place in plan.places for need in place.needs}
    table = Table("role", "planned, MiB", "measured, MiB", "measured / planned")
    found = {}
    for role, need in (("learner", needs["learner rank"]), ("teacher", needs["teacher"])):
        command = [sys.executable, __file__, *sys.argv[1:], "--role", role]
        environment = os.environ | ENVIRONMENT | {"MASTER_PORT": str(29000 + os.getpid() % 1000)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr)
        measured = json.loads(done.stdout.strip().splitlines()[-1])["resident"]
        planned = need.total - need.process
        found[role] = {"planned": planned, "measured": measured}
        table.add_row(role, f"{planned / MIB:.1f}", f"{measured / MIB:.1f}", f"{measured / planned:.3f}")
    Console(width=100).print(table)
    (arguments.out / "benchmark-plan.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
