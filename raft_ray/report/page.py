"""What each section of the report shows, as values for the template. Knows nothing about HTML or SVG.

A section whose files are not there is its one line of explanation (`absent`) and nothing else. Open questions, which
few runs ask, have neither section nor column where there are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from raft_ray.evaluate.statistics import wilson
from raft_ray.report import figures, stage1, timing
from raft_ray.report.answers import open_answers, side_by_side
from raft_ray.report.files import Row, Run
from raft_ray.report.timeline import timeline
from raft_ray.report.verdict import verdict
from raft_ray.report.words import about, duration, last_part, method_label, number, percent, short, usable

GENERAL_EXAMPLES = 3

NO_EVALUATION = "Left out: this run has no eval.json. `raft-ray eval RUN` writes it."
NO_ANSWERS = "Left out: the evaluation kept no answers (eval.samples)."


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
            *([("open", "Answers to open questions", _open(run))] if _opened(run) else []),
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
        ("Batch", run.setting("learner.global_batch_size")),
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
    ("first token", "drift", "kl_first", short, -1),
    ("top-1 agreement", "drift", "top1_agreement", percent, 1),
    ("prompt strict", "ifeval", "prompt_strict", percent, 1),
    ("prompt loose", "ifeval", "prompt_loose", percent, 1),
    ("instruct. strict", "ifeval", "instruction_strict", percent, 1),
    ("instruct. loose", "ifeval", "instruction_loose", percent, 1),
    ("score", "open", "score", percent, 1),
    ("words, mean", "length", "words_mean", short, 0),
    ("words, median", "length", "words_median", short, 0),
    ("truncated", "length", "truncated", percent, 0),
    ("distance", "weight_distance", "total", short, -1),
]
GROUPS = {
    "domain": "Domain",
    "drift": "Drift",
    "ifeval": "IFEval",
    "open": "Open questions",
    "length": "General answers",
    "weight_distance": "Weights",
}
"""Heading, part and key of eval.json, how it reads, and which direction is better (0: neither)."""


def _results(run: Run) -> dict[str, Any]:
    methods = run.evaluation
    if not methods:
        return _absent(NO_EVALUATION)
    table = [column for column in COLUMNS if column[1] != "open" or _opened(run)]
    best = {}
    for heading, part, key, _, better in table:
        values = [m[part][key] for name, m in methods.items() if name != "base" and m.get(part)]
        if better and len(values) > 1:
            best[heading] = max(values, key=lambda value: better * value)
    rows = []
    for name, m in methods.items():
        cells = []
        for heading, part, key, text, _ in table:
            value = m[part][key] if m.get(part) else None
            is_best = name != "base" and value is not None and value == best.get(heading)
            cells.append({"text": text(value), "best": is_best, "note": _note(name, part, key, methods)})
        rows.append({"method": name, "trained": _trained(run, name), "cells": cells})
    spans = {part: sum(column[1] == part for column in table) for part in GROUPS}
    groups = [(text, spans[part]) for part, text in GROUPS.items() if spans[part]]
    starts = [i == 0 or table[i - 1][1] != column[1] for i, column in enumerate(table)]
    columns = [{"text": column[0], "starts": start} for column, start in zip(table, starts, strict=True)]
    return {"groups": groups, "columns": columns, "rows": rows, "counts": _counts(methods), "opened": _opened(run)}


def _note(name: str, part: str, key: str, methods: dict[str, Row]) -> str:
    """Small print under a number: an accuracy's 95% interval, the share of the base's score of open questions."""
    measured = methods[name].get(part)
    if not measured:
        return ""
    if key == "accuracy" and measured.get("n"):
        low, high = wilson(measured["accuracy"], measured["n"])
        return f"{about(low)} to {about(high)}"
    base = (methods.get("base") or {}).get(part)
    if part == "open" and name != "base" and base:
        return f"{measured[key] / base[key]:.0%} of base" if base[key] else "base 0"
    return ""


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


def _answers(run: Run) -> dict[str, Any]:
    if not run.evaluation:
        return _absent(NO_EVALUATION)
    questions = side_by_side(run.main, run.evaluation, "answers")
    return {"questions": questions} if questions else _absent(NO_ANSWERS)


def _open(run: Run) -> dict[str, Any]:
    questions = open_answers(run.main, run.evaluation or {})
    return {"questions": questions} if questions else _absent(NO_ANSWERS)


def _general(run: Run) -> dict[str, Any]:
    if not run.evaluation:
        return _absent(NO_EVALUATION)
    questions = side_by_side(run.main, run.evaluation, "general_answers", GENERAL_EXAMPLES)
    return {"questions": questions} if questions else _absent("Left out: the evaluation kept no general answers.")


def _opened(run: Run) -> bool:
    """Open questions were asked and judged."""
    return any(m.get("open") for m in (run.evaluation or {}).values())
