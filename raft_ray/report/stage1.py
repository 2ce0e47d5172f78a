"""What the report shows of stage 1: what became of each row, what training uses, and rows before and after.

Everything is counted from the refined rows themselves. Knows nothing about HTML.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from raft_ray.report import figures
from raft_ray.report.files import Row, Run
from raft_ray.report.words import number, percent

EXAMPLES = 5
"""Rows shown before and after."""


def refinement(run: Run) -> dict[str, Any]:
    """The template's values of the section, or `absent` with the reason."""
    rows = run.refined
    if rows is None:
        reason = "refine.enabled=false, or stage 1 has not run"
        return {"absent": f"Left out: this run has no refined/*.parquet ({reason})."}
    if not rows:
        return {"absent": "Left out: refined/*.parquet holds no rows."}
    rewritten = [row for row in rows if row["rewrite"] is not None]
    if not rewritten:
        return {"absent": f"Left out: the {len(rows):,} rows were taken as they are, without rewriting."}
    accepted = [row for row in rewritten if row["accepted"]]
    refused = Counter(row["refused"] or "no reason given" for row in rewritten if not row["accepted"])
    sources = Counter(source(row) for row in rows)
    tau = number(run.setting("refine.tau"))

    def bar(text: str, count: int, css: str) -> dict[str, Any]:
        share = count / len(rows)
        return {"text": text, "value": f"{count:,}", "note": percent(share, 0), "share": share, "css": css}

    funnel = [
        bar("rows", len(rows), "s-first"),
        bar("rewritten", len(rewritten), "s-first"),
        bar("accepted", len(accepted), "s-good"),
        *(bar(f"refused: {reason.replace('_', ' ')}", count, "s-bad") for reason, count in refused.most_common()),
    ]
    used = [bar(SOURCES[name], sources[name], "s-first") for name in SOURCES if sources[name]]
    similarity = figures.similarity_figure(rows, tau)
    return {
        "funnel": funnel,
        "used": used,
        "figures": [similarity] if similarity else [],
        "examples": [{**row, "source": SOURCES[source(row)]} for row in _examples(rewritten)],
    }


SOURCES = {"fuse": "a fusion of both", "rewrite": "the rewrite", "gold": "the gold answer"}
"""Where the answer that training uses comes from."""


def source(row: Row) -> str:
    """`gold`, `rewrite` or `fuse`: who wrote the fused answer ŷ, the text that training uses."""
    if not row["accepted"]:
        return "gold"
    chosen = (c["source"] for c in row["candidates"] or [] if c["text"] == row["fused"])
    return next((name for name in chosen if name in SOURCES), "rewrite")


def _examples(rows: list[Row]) -> list[Row]:
    """Five rows that show the range: accepted from high to low cosine, refused for the two commonest reasons."""
    reasons = [reason for reason, _ in Counter(row["refused"] for row in rows if not row["accepted"]).most_common(2)]
    refused = [next(row for row in rows if not row["accepted"] and row["refused"] == reason) for reason in reasons]
    accepted = sorted((row for row in rows if row["accepted"]), key=lambda row: (row["similarity"] or 0.0, row["row"]))
    wanted = EXAMPLES - len(refused)
    if len(accepted) > wanted:
        accepted = [accepted[int((i + 0.5) * len(accepted) / wanted)] for i in range(wanted)]
    rest = [row for row in rows if not row["accepted"] and row not in refused]
    return (accepted[::-1] + refused + rest)[:EXAMPLES]
