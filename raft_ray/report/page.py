"""What each section of the report shows, as values for the template. Knows nothing about HTML or SVG.

A section whose files are not there is its one line of explanation (`absent`) and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from raft_ray.report import figures, stage1, timing
from raft_ray.report.files import Row, Run, in_order
from raft_ray.report.timeline import timeline
from raft_ray.report.verdict import verdict
from raft_ray.report.words import about, duration, last_part, method_label, number, percent, short, usable

EXAMPLES = 5
"""Domain questions shown."""
GENERAL_EXAMPLES = 3

NO_EVALUATION = "Left out: this run has no eval.json. `raft-ray eval RUN` writes it."


def page(run: Run) -> dict[str, Any]:
    """The template's values."""
    return {
        "run": run,
        "title": _title(run),
        "facts": _facts(run),
        "verdict": verdict(run.main, run.evaluation) if run.evaluation else None,
        "tiles": _tiles(run.evaluation or {}),
        "sections": [
            ("results", "Results", _results(run)),
            ("tradeoff", "What was gained, what it cost", _tradeoff(run)),
            ("training", "Training", _training(run)),
            ("refinement", "Stage 1: refined answers", stage1.refinement(run)),
            ("time", "Time", _time(run)),
            ("timeline", "Who worked when", timeline(run)),
            ("weights", "Weight distance", _weights(run)),
            ("answers", "Answers to domain questions", _answers(run)),
            ("general", "Answers to general questions", _general(run)),
        ],
    }


def _absent(line: str) -> dict[str, Any]:
    return {"absent": line}


def _title(run: Run) -> str:
    model, data = run.setting("model.path"), run.setting("data.train")
    if model is None or data is None:
        return f"{method_label(run.main)}: {run.folder.resolve().name}"
    return f"{method_label(run.main)}: {last_part(model)} on {last_part(data)}"


def _facts(run: Run) -> list[tuple[str, str]]:
    """(label, text) of the header; what is not known is not listed."""
    rows = run.metrics.get(run.main, [])
    trained = run.refined.rows if run.refined is not None else len({row["row"] for row in run.traces.get(run.main, [])})
    facts: list[tuple[str, Any]] = [
        ("Model", run.setting("model.path")),
        ("Domain data", run.setting("data.train")),
        ("Test questions", run.setting("data.test")),
        ("Rows", f"{trained:,}" if trained else None),
        ("Steps", f"{len(rows):,}" if rows else None),
        ("Batch", run.setting("learner.batch")),
        ("Learning rate", short(run.setting("learner.lr")) if usable(number(run.setting("learner.lr"))) else None),
        ("Seed", run.setting("run.seed")),
    ]
    if any(usable(row.get("kl_loss")) for row in rows):
        facts.append(("Distillation", _distillation(run)))
        facts.append(("Staleness, at most", run.setting("sync.max_staleness")))
    if run.refined is not None:
        facts.append(("Filter τ", run.setting("refine.tau")))
    facts.append(("Finished", f"{run.finished:%Y-%m-%d %H:%M} UTC" if run.finished else None))
    return [(label, str(value)) for label, value in facts if value is not None and value != ""]


def _distillation(run: Run) -> str | None:
    if run.config is None:
        return None
    balance = run.setting("distill.balance")
    weight = f"λ = {run.setting('distill.fixed_lambda')}" if balance == "fixed" else "λ by moving averages"
    return f"T = {run.setting('distill.temperature')}, K = {run.setting('distill.top_k')}, {weight}"


def _tiles(methods: dict[str, Row]) -> list[dict[str, Any]]:
    """The figures at a glance: a title, how to read it, and a bar a method."""

    def tile(
        title: str, hint: str, value: Callable[[Row], float | None], text: Callable[[float], str]
    ) -> dict[str, Any]:
        values = {name: value(m) for name, m in methods.items()}
        most = max((v for v in values.values() if usable(v)), default=0.0)
        bars = [
            {"method": name, "text": text(v), "width": 100 * max(0.0, v) / most if most > 0 else 0}
            for name, v in values.items()
            if usable(v)
        ]
        return {"title": title, "hint": hint, "bars": bars}

    base = ((methods.get("base") or {}).get("length") or {}).get("words_mean")
    length = (
        tile(
            "General answers",
            "length, of the base's",
            lambda m: (m.get("length") or {}).get("words_mean", 0) / base if m.get("length") else None,
            about,
        )
        if base
        else tile("General answers", "words, mean", lambda m: (m.get("length") or {}).get("words_mean"), short)
    )
    tiles = [
        tile("Domain accuracy", "higher is better", lambda m: (m.get("domain") or {}).get("accuracy"), about),
        tile(
            "Drift", "nats a token; lower is better", lambda m: (m.get("drift") or {}).get("kl"), lambda v: short(v, 2)
        ),
        length,
        tile(
            "IFEval", "prompt-strict; higher is better", lambda m: (m.get("ifeval") or {}).get("prompt_strict"), about
        ),
        tile("Open questions", "judged; higher is better", lambda m: (m.get("open") or {}).get("score"), about),
    ]
    return [one for one in tiles if one["bars"]]


COLUMNS: list[tuple[str, str, str, Callable[[Any], str], int]] = [
    ("accuracy", "domain", "accuracy", percent, 1),
    ("nats a token", "drift", "kl", short, -1),
    ("top-1 agreement", "drift", "top1_agreement", percent, 1),
    ("prompt strict", "ifeval", "prompt_strict", percent, 1),
    ("prompt loose", "ifeval", "prompt_loose", percent, 1),
    ("instruct. strict", "ifeval", "instruction_strict", percent, 1),
    ("instruct. loose", "ifeval", "instruction_loose", percent, 1),
    ("words, mean", "length", "words_mean", short, 0),
    ("words, median", "length", "words_median", short, 0),
    ("truncated", "length", "truncated", percent, 0),
    ("distance", "weight_distance", "total", short, -1),
]
GROUPS = {
    "domain": "Domain",
    "drift": "Drift",
    "ifeval": "IFEval",
    "length": "General answers",
    "weight_distance": "Weights",
}
"""Heading, part and key of eval.json, how it reads, and which direction is better (0: neither)."""


def _results(run: Run) -> dict[str, Any]:
    methods = run.evaluation
    if not methods:
        return _absent(NO_EVALUATION)
    best = {}
    for heading, part, key, _, better in COLUMNS:
        values = [m[part][key] for name, m in methods.items() if name != "base" and m.get(part)]
        if better and len(values) > 1:
            best[heading] = max(values, key=lambda value: better * value)
    rows = []
    for name, m in methods.items():
        cells = []
        for heading, part, key, text, _ in COLUMNS:
            value = m[part][key] if m.get(part) else None
            is_best = name != "base" and value is not None and value == best.get(heading)
            cells.append({"text": text(value), "best": is_best, "note": ""})
        domain = m.get("domain")
        if domain and domain.get("n"):
            low, high = figures.wilson(domain["accuracy"], domain["n"])
            cells[0]["note"] = f"{about(low)} to {about(high)}"
        rows.append({"method": name, "trained": _trained(run, name), "cells": cells})
    groups = [(text, sum(column[1] == part for column in COLUMNS)) for part, text in GROUPS.items()]
    starts = [i == 0 or COLUMNS[i - 1][1] != column[1] for i, column in enumerate(COLUMNS)]
    columns = [{"text": column[0], "starts": start} for column, start in zip(COLUMNS, starts, strict=True)]
    return {"groups": groups, "columns": columns, "rows": rows, "counts": _counts(methods)}


def _trained(run: Run, name: str) -> str:
    """`60 steps, lr 2e-04` of a method that has metrics."""
    rows = run.metrics.get(name)
    if not rows:
        return "untouched" if name == "base" else ""
    rates = [row["lr"] for row in rows if usable(row.get("lr"))]
    return f"{len(rows):,} steps" + (f", lr {max(rates):.3g}" if rates else "")


def _counts(methods: dict[str, Row]) -> str:
    """On how much each number rests."""
    parts = [
        ("domain", "n", "domain questions"),
        ("drift", "tokens", "tokens of the base's own answers for drift and agreement"),
        ("ifeval", "n", "IFEval prompts"),
        ("length", "n", "general prompts for words and truncation"),
        ("open", "n", "open questions"),
    ]
    texts = []
    for part, key, text in parts:
        counts = {m[part][key] for m in methods.values() if m.get(part) and m[part].get(key) is not None}
        if counts:
            texts.append(" / ".join(short(count, 9) for count in sorted(counts)) + f" {text}")
    return "; ".join(texts)


def _tradeoff(run: Run) -> dict[str, Any]:
    if not run.evaluation:
        return _absent(NO_EVALUATION)
    found = figures.tradeoff_figures(run.evaluation)
    if not found:
        return _absent("Left out: domain accuracy was not measured. Set data.test and run `raft-ray eval RUN`.")
    return {"figures": found, "legend": []}


def _training(run: Run) -> dict[str, Any]:
    if not run.metrics:
        return _absent("Left out: this run has no metrics.jsonl, so nothing was trained yet.")
    distilled = any(usable(row.get("kl_loss")) for rows in run.metrics.values() for row in rows)
    notes = [] if distilled else ["No method of this run distils, so there are no curves of KL, λ and teacher."]
    return {"figures": figures.training_figures(run), "notes": notes + _audit(run)}


def _audit(run: Run) -> list[str]:
    """What trace.jsonl of the main method proves about the rows it trained on."""
    trace = run.traces.get(run.main)
    if not trace:
        return []
    seen = Counter((row["epoch"], row["row"]) for row in trace)
    repeats = sum(count - 1 for count in seen.values())
    stale = [row["step"] - row["version"] for row in trace if row.get("version") is not None]
    text = f"trace.jsonl: {len(trace):,} samples of {len({row['row'] for row in trace}):,} rows were trained on"
    text += ", none twice in an epoch" if repeats == 0 else f", {repeats:,} of them a second time in the same epoch"
    if stale:
        limit = run.setting("sync.max_staleness")
        oldest = f"{max(stale)} version{'' if max(stale) == 1 else 's'}"
        text += f"; none was more than {oldest} old" + (f" (limit {limit})" if limit is not None else "")
    return [text + "."]


def _time(run: Run) -> dict[str, Any]:
    totals = timing.totals(run)
    if not totals:
        return _absent("Left out: no metrics.jsonl with `seconds` in this run.")
    hidden = [f"{method_label(row['method'])} {about(row['hidden'])}" for row in totals if row["hidden"] is not None]
    notes = []
    if any(row["hidden"] for row in totals):
        notes.append(
            "Rollout, teacher and loading weights run beside the learner. The bars split the wall time and count them "
            "as far as the learner waited; the table has their whole time. "
            f"Hidden behind the learner's work: {', '.join(hidden)}."
        )
    if run.summary.get("seconds") is not None:
        notes.append(f"Stage 1 took {duration(run.summary['seconds'])}.")
    evaluated = {
        name: sum(value for value in seconds.values() if usable(number(value)))
        for name, m in (run.evaluation or {}).items()
        if isinstance(seconds := m.get("seconds"), dict)
    }
    if any(evaluated.values()):
        texts = [f"{method_label(name)} {duration(seconds)}" for name, seconds in evaluated.items() if seconds]
        notes.append(f"Evaluation: {', '.join(texts)}.")
    return {
        "figure": timing.time_figure(run),
        "wall": timing.used_phases(totals, "wall"),
        "recorded": timing.used_phases(totals, "recorded"),
        "totals": totals,
        "most": max(row["seconds"] for row in totals),
        "notes": notes,
    }


def _weights(run: Run) -> dict[str, Any]:
    if not run.evaluation:
        return _absent(NO_EVALUATION)
    figure = figures.distance_figure(run.evaluation)
    if not figure:
        return _absent("Left out: the evaluation did not measure weight distance.")
    measured = {name: m["weight_distance"] for name, m in run.evaluation.items() if m.get("weight_distance")}
    most = max(distance["total"] for distance in measured.values()) or 1.0
    totals = [
        {
            "text": method_label(name),
            "css": figures.method_css(name),
            "share": d["total"] / most,
            "value": short(d["total"]),
        }
        for name, d in measured.items()
        if name != "base"
    ]
    return {"figure": figure, "totals": totals}


def _side_by_side(run: Run, part: str, limit: int) -> list[dict[str, Any]]:
    """The main method's first prompts (or the first method's that has any), each with every method's answer to it."""
    methods = run.evaluation or {}
    leader = next((name for name in [run.main, *methods] if (methods.get(name) or {}).get(part)), None)
    if leader is None:
        return []
    by_prompt = {
        name: {str(a["prompt"]): {"answer": a.get("answer"), "correct": a.get("correct")} for a in m.get(part) or []}
        for name, m in methods.items()
    }
    shown = [name for name in in_order(methods) if by_prompt[name]]
    return [
        {
            "prompt": str(sample["prompt"]),
            "gold": sample.get("gold"),
            "answers": [(name, by_prompt[name].get(str(sample["prompt"]))) for name in shown],
        }
        for sample in methods[leader][part][:limit]
    ]


def _answers(run: Run) -> dict[str, Any]:
    if not run.evaluation:
        return _absent(NO_EVALUATION)
    questions = _side_by_side(run, "answers", EXAMPLES)
    return (
        {"questions": questions} if questions else _absent("Left out: the evaluation kept no answers (eval.samples).")
    )


def _general(run: Run) -> dict[str, Any]:
    if not run.evaluation:
        return _absent(NO_EVALUATION)
    questions = _side_by_side(run, "general_answers", GENERAL_EXAMPLES)
    return {"questions": questions} if questions else _absent("Left out: the evaluation kept no general answers.")
