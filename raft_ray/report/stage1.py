"""What the run's report shows of stage 1: what became of each row, what training uses, and rows before and after.

Stage 1's own report (`refine_page.py`) goes on from the same facts. Knows nothing about HTML.
"""

from __future__ import annotations

from typing import Any

from raft_ray.report.files import Run
from raft_ray.report.refine_facts import Facts, Row, source
from raft_ray.report.refine_figures import similarity_figure
from raft_ray.report.words import percent

SOURCES = {"fuse": "a fusion of both", "rewrite": "the rewrite", "gold": "the gold answer"}
"""Where the answer that training uses comes from."""


def refinement(run: Run) -> dict[str, Any]:
    """The template's values of the section, or `absent` with the reason."""
    facts = run.refined
    if facts is None:
        return {"absent": "Left out: this run has no refined/*.parquet (refine.enabled=false, or stage 1 has not run)."}
    if reason := nothing_refined(facts):
        return {"absent": f"Left out: {reason}"}
    refused = [
        bar(f"refused: {spelled(reason)}", count, facts.rows, "s-bad") for reason, count in facts.refused.most_common()
    ]
    similarity = similarity_figure(facts)
    return {
        "funnel": [
            bar("rows", facts.rows, facts.rows, "s-first"),
            *unwritten(facts),
            bar("rewritten", facts.rewritten, facts.rows, "s-first"),
            bar("accepted", facts.accepted, facts.rows, "s-good"),
            *refused,
        ],
        "used": used(facts),
        "figures": [similarity] if similarity else [],
        "examples": examples(facts.samples(accepted=3, refused=1, reasons=2)),
        "notes": ["More on stage 1 is in refine_report.html of this run folder."],
    }


def nothing_refined(facts: Facts) -> str | None:
    """Why there is nothing to show of stage 1, none where there is."""
    if not facts.rows:
        return "refined/*.parquet holds no rows."
    if not facts.rewritten and facts.unwritten:
        reasons = ", ".join(spelled(reason) for reason in facts.unwritten)
        return f"none of the {facts.rows:,} rows could be rewritten ({reasons})."
    if not facts.rewritten:
        return f"the {facts.rows:,} rows were taken as they are, without rewriting."
    return None


def bar(text: str, count: int, rows: int, css: str) -> dict[str, Any]:
    """A line of a bar table: so many of all rows."""
    share = count / rows if rows else 0.0
    return {"text": text, "value": f"{count:,}", "note": percent(share, 0), "share": share, "css": css}


def unwritten(facts: Facts) -> list[dict[str, Any]]:
    """Rows for which no rewrite came, in bars."""
    return [
        bar(f"no rewrite: {spelled(reason)}", count, facts.rows, "s-bad")
        for reason, count in facts.unwritten.most_common()
    ]


def used(facts: Facts) -> list[dict[str, Any]]:
    """Whose text training uses, in bars."""
    names = [*SOURCES, *sorted(set(facts.sources) - set(SOURCES))]
    return [
        bar(SOURCES.get(name, name), facts.sources[name], facts.rows, "s-first")
        for name in names
        if facts.sources[name]
    ]


def examples(rows: list[Row]) -> list[Row]:
    """Rows to read, each with the name of its `source`."""
    return [{**row, "source": SOURCES.get(source(row), source(row))} for row in rows]


def spelled(reason: str) -> str:
    """A reason of refusal as words."""
    return reason.replace("_", " ")
