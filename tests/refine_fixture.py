"""A made-up run folder that only refined: 400 rows, two judges, the measured gap and the summary.

The same every time; nothing here needs a model. `write_refine_run(folder)` writes it, `refined_row(n)` makes a row.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.refine.gap import GAP, VALUES, VALUES_SCHEMA, Gap
from raft_ray.refine.schema import RefinedRow, part_files, refined_table, write_summary

ROWS = 400
TAU = 0.8
REASONS = ["similarity", "key_facts", "leak", "invented", "truncated"]
TOPICS = ["cards", "transfers", "refunds", "top-ups", "exchange rates", "cash withdrawals", "accounts"]
CONFIG = """\
run: {dir: runs/refined, seed: 7}
model: {path: "embedded:smollm2-135m-instruct"}
data: {train: "train.jsonl"}
refine: {tau: 0.8, embedder: wordllama, rewriter: self, fuser: self, judges: [embedding, key_facts]}
"""
SUMMARY = {
    "rows": ROWS,
    "seconds": 512.0,
    "stages": {
        "rewrite": {"seconds": 301.2, "rows_per_second": 1.33},
        "filter": {"seconds": 3.1, "rows_per_second": 129.0},
        "fuse": {"seconds": 188.0, "rows_per_second": 1.1},
        "judge": {"seconds": 12.5, "rows_per_second": 16.6},
    },
    "models": {"self": {"input_tokens": 81234, "output_tokens": 30011, "cost": 0.0}},
    "cache": {"hits": 12, "misses": 1188},
    "judge_failures": {"embedding": 0, "key_facts": 3},
    "prompts": {"rewrite": "9f2c" * 16, "fuse": "01ab" * 16},
}


def refined_row(number: int) -> RefinedRow:
    """Row `number`: about half are accepted, the others refused for one of five reasons."""
    noise = random.Random(number)
    topic, days = TOPICS[number % len(TOPICS)], 2 + number % 9
    question = f"How long do {topic} take, and can I speed it up?"
    gold = f"{topic.capitalize()}: {days} working days"
    similarity = min(0.99, max(0.2, noise.gauss(0.82, 0.1)))
    refused = REASONS[1 + number % 4] if noise.random() < 0.25 else None
    if similarity < TAU:
        refused = refused or "similarity"
    rewrite = f"It usually takes {days} working days for {topic}. You cannot speed it up. "
    rewrite += "Please wait until then. " * (number % 3)
    fused = f"With {topic} you should expect {days} working days, and there is no way to speed this up."
    candidates: list[dict[str, Any]] = []
    chosen = gold
    if refused is None:
        # Both judges see how good a text is, each with errors of its own; now and then one does not answer.
        for source, text in (("rewrite", rewrite), ("fuse", fused), ("fuse", fused + " Thank you")):
            quality = min(1.0, max(0.0, noise.gauss(0.8, 0.15)))
            scores = [
                {"judge": name, "score": min(1.0, max(0.0, quality + noise.gauss(0, spread)))}
                for name, spread in (("embedding", 0.05), ("key_facts", 0.1))
                if name == "embedding" or noise.random() > 0.02
            ]
            mean = sum(score["score"] for score in scores) / len(scores)
            candidates.append(
                {"text": text, "source": source, "round": int(source == "fuse"), "scores": scores, "score": mean}
            )
        candidates.append({"text": "Reference answer:", "source": "fuse", "round": 2, "scores": [], "score": 0.0})
        chosen = max(candidates, key=lambda candidate: candidate["score"])["text"]
    return {
        "row": number,
        "messages": [{"role": "user", "content": question}],
        "prompt": question,
        "answer": gold,
        "answers": [gold],
        "rewrite": rewrite.strip(),
        "similarity": similarity,
        "accepted": refused is None,
        "refused": refused,
        "candidates": candidates,  # type: ignore[typeddict-item]
        "rounds": 0 if refused else 1 + number % 2,
        "fused": chosen,
    }


def write_refine_run(folder: Path, rows: int = ROWS) -> Path:
    """Write the run folder and return it."""
    refined = folder / "refined"
    refined.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    made = [refined_row(number) for number in range(rows)]
    for start in range(0, rows, 128):
        pq.write_table(refined_table(made[start : start + 128]), refined / f"part-{start:08d}-x.parquet")
    noise = random.Random(1)
    values = []
    for row in made:
        gold, rewrite = noise.gauss(-4.8, 0.9), noise.gauss(-1.4, 0.35)
        fused = noise.gauss(-1.1, 0.3) if row["accepted"] else gold
        texts = {"gold": gold, "rewrite": rewrite, "fused": fused, "conditioned": fused + noise.gauss(0.7, 0.1)}
        values.append({"row": row["row"], "accepted": row["accepted"], **texts})
    table = pa.Table.from_pylist(values, schema=VALUES_SCHEMA)
    pq.write_table(table, refined / VALUES)
    gap = Gap(seed=0)
    gap.add(table)
    (refined / GAP).write_text(json.dumps(gap.result()))
    write_summary(refined, SUMMARY)
    return folder


def read_refined(folder: Path) -> list[RefinedRow]:
    """All rows of a refined folder, in their order."""
    return pa.concat_tables(map(pq.read_table, part_files(folder))).sort_by("row").to_pylist()
