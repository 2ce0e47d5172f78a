"""The learner's step on the embedded model: layouts and graph policies, measured in turn in one process.

    python benchmarks/step.py [--rounds 5] [--rows 16] [--prompt 45] [--answer 12] [--response 32] [--zero 1] \
        [--dtype bfloat16] [--only "one micro-batch"]

Each round runs every variant once (those whose name holds `--only`), so that a machine that changes its speed changes
all of them. Prints seconds of forward + backward and of the optimizer, each variant's median, and the median of its
ratio to the first variant.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from functools import partial

os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
os.environ.setdefault("MASTER_PORT", "29531")

import numpy as np
from rich.console import Console
from rich.table import Table

from actors.distill.student_engine import make_engine
from raft_ray import models
from raft_ray.config import Config, Dtype
from raft_ray.distill.losses import EmaBalancer
from raft_ray.distill.order import SampleId
from raft_ray.distill.step import train_step
from raft_ray.distill.student import make_micro_batches
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.prompts import EncodedRow

# name, share_prompt, padded tokens of a micro-batch, keep_graph, attention (none: the learner's own)
VARIANTS = [
    ("prompt read twice, one micro-batch", False, 10**6, True, None),
    ("prompt shared, one micro-batch", True, 10**6, True, None),
    ("prompt shared, micro-batches, two_pass", True, 512, False, None),
    ("prompt shared, micro-batches, keep_graph", True, 512, True, None),
    ("prompt shared, one micro-batch, attention in the model's dtype", True, 10**6, True, "sdpa"),
]


def now(marks: list[float]) -> None:
    marks.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("rows", 16), ("prompt", 45), ("answer", 12), ("response", 32), ("zero", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", type=Dtype, default=Dtype.bfloat16)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    variants = [variant for variant in VARIANTS if arguments.only in variant[0]]
    config = Config()
    config.model.dtype = arguments.dtype
    config.learner.zero_stage = arguments.zero
    folder = models.resolve(config.model.path)
    vocabulary = models.vocabulary_size(folder, config.model)
    engine = make_engine(config, folder)
    model = engine.module.model
    own = model.config._attn_implementation
    random = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return random.integers(100, vocabulary, count).tolist()

    rows = [EncodedRow(i, ids(arguments.prompt), ids(arguments.answer), []) for i in range(arguments.rows)]
    length, kept = arguments.response, config.distill.top_k
    samples = [
        Sample(
            Trajectory(SampleId(0, i), 0, np.asarray(ids(length), dtype=np.int32), False, ""),
            random.integers(0, vocabulary, (length, kept)).astype(np.int32),
            np.log(random.dirichlet(np.ones(kept), length)).astype(np.float16),
        )
        for i in range(arguments.rows)
    ]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in variants}
    for round_number in range(arguments.rounds + 1):
        for name, share, tokens, keep_graph, attention in variants:
            model.set_attn_implementation(attention or own)
            batches = make_micro_batches(rows, samples, total=len(rows), tokens=tokens, share_prompt=share)
            start = time.perf_counter()
            marks: list[float] = []
            train_step(
                engine,
                batches,
                balancer=EmaBalancer(),
                ranks=1,
                keep_graph=keep_graph,
                reduce=lambda values: values,
                on_gradients=partial(now, marks),
            )
            # The first round warms up.
            if round_number:
                seconds[name].append((marks[0] - start, time.perf_counter() - marks[0]))
    first = variants[0][0]
    table = Table("variant", "forward + backward, s", "optimizer, s", "ratio to the first")
    for name, measured in seconds.items():
        ratios = [a[0] / b[0] for a, b in zip(measured, seconds[first], strict=True)]
        table.add_row(
            name,
            f"{statistics.median(m[0] for m in measured):.2f}",
            f"{statistics.median(m[1] for m in measured):.2f}",
            f"{statistics.median(ratios):.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    # As Ray does, which matters to malloc.
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
