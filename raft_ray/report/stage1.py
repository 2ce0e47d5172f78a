"""What both reports show of stage 1: what became of each row, what training uses, rows before and after.

Stage 1's own report (`refine_page.py`) goes on from the same facts.
"""

from __future__ import annotations

from typing import Any

from raft_ray.refine.summary import source
from raft_ray.report.charts import histogram
from raft_ray.report.figures import Figure
from raft_ray.report.files import Record, Run
from raft_ray.report.refine_facts import Facts
from raft_ray.report.words import format_percent

SOURCES = {"fuse": "a fusion of both", "rewrite": "the rewrite", "gold": "the gold answer"}
"""Where the answer that training uses comes from."""


def refinement(run: Run) -> dict[str, Any]:
    """The template's values of the section in the run's report, or `absent` with the reason."""
    facts = run.refined
    if facts is None:
        return {"absent": "Left out: this run has no refined/*.parquet (refine.enabled=false, or stage 1 has not run)."}
    if reason := nothing_refined(facts):
        return {"absent": f"Left out: {reason}"}
    similarity = similarity_figure(facts)
    return {
        "funnel": [
            *rewritten(facts),
            bar("accepted", facts.accepted, facts.rows, "s-good"),
            *refused(facts, facts.refused.most_common()),
        ],
        "used": used(facts),
        "figures": [similarity] if similarity else [],
        "examples": examples(facts.samples(accepted=3, refused=1, reasons=2)),
        "notes": ["More on stage 1 is in refine_report.html of this run folder."],
    }


def similarity_figure(facts: Facts) -> Figure | None:
    """Histogram of cos(gold, rewrite): accepted, and refused though some of them pass τ."""
    groups = [(name, css, facts.similarity[name]) for name, css in (("accepted", "s-good"), ("refused", "s-bad"))]
    if not any(counts.total for _, _, counts in groups):
        return None
    title = "Similarity of gold answer and rewrite"
    marker = (facts.tau, f"τ = {facts.tau:g}") if facts.tau is not None else None
    chart = histogram(groups, label=title, x_label="cosine of gold answer and rewrite", marker=marker)
    note = "Rows by cosine. Right of τ, refused rows failed another check."
    return Figure(title, note, chart, [(name, css) for name, css, _ in groups])


def nothing_refined(facts: Facts) -> str | None:
    """Why there is nothing to show of stage 1, none where there is."""
    if not facts.rows:
        return "refined/*.parquet holds no rows."
    if facts.rewritten:
        return None
    if facts.unwritten:
        reasons = ", ".join(spelled(reason) for reason in facts.unwritten)
        return f"none of the {facts.rows:,} rows could be rewritten ({reasons})."
    return f"the {facts.rows:,} rows were taken as they are, without rewriting."


def bar(text: str, count: int, rows: int, css: str) -> dict[str, Any]:
    """A line of a bar table: so many of all rows."""
    share = count / rows if rows else 0.0
    return {"text": text, "value": f"{count:,}", "note": format_percent(share, 0), "share": share, "css": css}


def rewritten(facts: Facts) -> list[dict[str, Any]]:
    """All rows, those for which no rewrite came, and those for which one did, in bars."""
    failed = [
        bar(f"no rewrite: {spelled(reason)}", count, facts.rows, "s-bad")
        for reason, count in facts.unwritten.most_common()
    ]
    rows = facts.rows
    return [bar("rows", rows, rows, "s-first"), *failed, bar("rewritten", facts.rewritten, rows, "s-first")]


def refused(facts: Facts, reasons: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Refused rows by reason, in bars."""
    return [bar(f"refused: {spelled(reason)}", count, facts.rows, "s-bad") for reason, count in reasons]


def used(facts: Facts) -> list[dict[str, Any]]:
    """Whose text training uses, in bars."""
    names = [*SOURCES, *sorted(set(facts.sources) - set(SOURCES))]
    counts = [(SOURCES.get(name, name), facts.sources[name]) for name in names]
    return [bar(text, count, facts.rows, "s-first") for text, count in counts if count]


def examples(rows: list[Record]) -> list[Record]:
    """Rows to read, each with the name of its `source`."""
    return [{**row, "source": SOURCES.get(source(row), source(row))} for row in rows]


def spelled(reason: str) -> str:
    """A reason of refusal as words."""
    return reason.replace("_", " ")
