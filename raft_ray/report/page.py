"""What each section of the run's report shows, as values for the template.

A section whose files are not there is its one line of explanation (`absent`) and nothing else. Open questions, which
few runs ask, and kinds of instructions have neither section nor column where there are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from raft_ray.evaluate.statistics import describe_retention, wilson
from raft_ray.report import figures, stage1, timing
from raft_ray.report.answers import side_by_side
from raft_ray.report.files import Record, Run
from raft_ray.report.kinds import kinds_table
from raft_ray.report.timeline import timeline
from raft_ray.report.verdict import verdict
from raft_ray.report.words import (
    format_duration,
    format_number,
    format_percent,
    last_part,
    method_css,
    method_label,
    number,
    usable,
)

GENERAL_EXAMPLES = 3

NO_EVALUATION = {"absent": "Left out: this run has no eval.json. `raft-ray eval RUN` writes it."}
NO_ANSWERS = "Left out: the evaluation kept no answers (eval.samples)."


def page(run: Run) -> dict[str, Any]:
    """The template's values."""
    evaluation = run.evaluation or {}
    opened = any(m.get("open") for m in evaluation.values())
    kinds = kinds_table({name: (m.get("ifeval") or {}).get("kinds") for name, m in evaluation.items()})
    evaluated = {
        "results": lambda: _results(run, evaluation, opened),
        "tradeoff": lambda: _figures(
            figures.tradeoff_figures(evaluation),
            "domain accuracy was not measured. Set data.test and run `raft-ray eval RUN`.",
        ),
        "weights": lambda: _weights(evaluation),
        "answers": lambda: _questions(side_by_side(run.main, evaluation, "answers"), NO_ANSWERS),
        "general": lambda: _questions(
            side_by_side(run.main, evaluation, "general_answers", GENERAL_EXAMPLES),
            "Left out: the evaluation kept no general answers.",
        ),
    }
    found = {name: make() if evaluation else NO_EVALUATION for name, make in evaluated.items()}
    sections = [
        ("results", "Results", found["results"]),
        ("tradeoff", "What was gained, what it cost", found["tradeoff"]),
        ("kinds", "What was lost, by kind of instruction", {"table": kinds}),
        ("training", "Training", _training(run)),
        ("validation", "Gained and lost while it trained", _validation(run)),
        ("refinement", "Stage 1: refined answers", stage1.refinement(run)),
        ("time", "Time", _time(run)),
        ("timeline", "Who worked when", timeline(run)),
        ("weights", "Weight distance", found["weights"]),
        ("answers", "Answers to domain questions", found["answers"]),
        (
            "open",
            "Answers to open questions",
            _questions(side_by_side(run.main, evaluation, "open_answers"), NO_ANSWERS),
        ),
        ("general", "Answers to general questions", found["general"]),
    ]
    return {
        "run": run,
        "title": _title(run),
        "facts": _facts(run),
        "verdict": verdict(run.main, evaluation) if evaluation else None,
        "tiles": _tiles(evaluation),
        "sections": [
            one
            for one in sections
            if {"open": opened, "kinds": kinds.rows, "validation": run.evaluations}.get(one[0], True)
        ],
    }


def known(facts: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """The (label, text) of a header that are known."""
    return [(label, str(value)) for label, value in facts if value is not None and value != ""]


def _figures(found: list[figures.Figure], missing: str) -> dict[str, Any]:
    return {"figures": found} if found else {"absent": f"Left out: {missing}"}


def _questions(questions: list[dict[str, Any]], missing: str) -> dict[str, Any]:
    return {"questions": questions} if questions else {"absent": missing}


def _title(run: Run) -> str:
    model, data = run.setting("model.path"), run.setting("data.train")
    if model is None or data is None:
        return f"{method_label(run.main)}: {run.folder.resolve().name}"
    return f"{method_label(run.main)}: {last_part(model)} on {last_part(data)}"


def _facts(run: Run) -> list[tuple[str, str]]:
    rows, rate = run.metrics.get(run.main, []), number(run.setting("learner.lr"))
    own = {row["row"] for row in run.traces.get(run.main, []) if not row.get("rehearsal")}
    trained = run.refined.rows if run.refined is not None else len(own)
    facts = [
        ("Model", run.setting("model.path")),
        ("Domain data", run.setting("data.train")),
        ("Test questions", run.setting("data.test")),
        ("Rows", f"{trained:,}" if trained else None),
        ("Steps", f"{len(rows):,}" if rows else None),
        ("Batch", run.setting("learner.global_batch_size")),
        ("Learning rate", format_number(rate) if usable(rate) else None),
        ("Seed", run.setting("run.seed")),
    ]
    if any(usable(row.get("kl_loss")) for row in rows):
        weight = {"fixed": f"λ = {run.setting('distill.fixed_lambda')}", "budget": "λ by the drift"}.get(
            run.setting("distill.balance"), "λ by moving averages"
        )
        settings = f"T = {run.setting('distill.temperature')}, K = {run.setting('distill.top_k')}, {weight}"
        facts.append(("Distillation", settings if run.config else None))
        facts.append(("Staleness, at most", run.setting("sync.max_staleness")))
    if any(usable(row.get(key)) for row in rows for key in ("rehearsal_kl", "rehearsal_ce")):
        per_step, weight = run.setting("distill.rehearsal.rows"), run.setting("distill.rehearsal.weight")
        facts.append(("Rehearsal", f"{per_step} prompts per step, w = {weight}" if run.config else None))
        if run.setting("distill.balance") == "budget":
            facts.append(("Drift budget", f"{run.setting('distill.drift_budget')} nats per token"))
    if run.refined is not None:
        facts.append(("Filter τ", run.setting("refine.tau")))
    facts.append(("Finished", f"{run.finished:%Y-%m-%d %H:%M} UTC" if run.finished else None))
    return known(facts)


def _tiles(methods: dict[str, Record]) -> list[dict[str, Any]]:
    """The figures at a glance: a title, how to read it, and a bar per method."""
    base = ((methods.get("base") or {}).get("length") or {}).get("words_mean")
    tiles: list[tuple[str, str, str, str, Callable[[float], str], float]] = [
        ("Domain accuracy", "higher is better", "domain", "accuracy", format_percent, 1),
        ("Drift", "nats per token; lower is better", "drift", "kl", lambda value: format_number(value, 2), 1),
        ("General answers", "length, of the base's", "length", "words_mean", format_percent, base)
        if base
        else ("General answers", "words, mean", "length", "words_mean", format_number, 1),
        ("IFEval", "prompt-strict; higher is better", "ifeval", "prompt_strict", format_percent, 1),
        ("Open questions", "judged; higher is better", "open", "score", format_percent, 1),
    ]
    shown = []
    for title, hint, part, key, text, whole in tiles:
        values = {name: m[part][key] / whole for name, m in methods.items() if m.get(part) and usable(m[part].get(key))}
        most = max(values.values(), default=0.0)
        bars = [
            {"method": name, "text": text(value), "width": 100 * max(0.0, value) / most if most > 0 else 0}
            for name, value in values.items()
        ]
        if bars:
            shown.append({"title": title, "hint": hint, "bars": bars})
    return shown


def _exact(value: float | None) -> str:
    return format_percent(value, 1)


COLUMNS: list[tuple[str, str, str, Callable[[Any], str], int]] = [
    ("accuracy", "domain", "accuracy", _exact, 1),
    ("nats per token", "drift", "kl", format_number, -1),
    ("first token", "drift", "kl_first", format_number, -1),
    ("top-1 agreement", "drift", "top1_agreement", _exact, 1),
    ("prompt strict", "ifeval", "prompt_strict", _exact, 1),
    ("prompt loose", "ifeval", "prompt_loose", _exact, 1),
    ("instruct. strict", "ifeval", "instruction_strict", _exact, 1),
    ("instruct. loose", "ifeval", "instruction_loose", _exact, 1),
    ("score", "open", "score", _exact, 1),
    ("words, mean", "length", "words_mean", format_number, 0),
    ("words, median", "length", "words_median", format_number, 0),
    ("truncated", "length", "truncated", _exact, 0),
    ("distance", "weight_distance", "total", format_number, -1),
]
"""Heading, part and key of eval.json, how it reads, and which direction is better (0: neither)."""
GROUPS = {
    "domain": "Domain",
    "drift": "Drift",
    "ifeval": "IFEval",
    "open": "Open questions",
    "length": "General answers",
    "weight_distance": "Weights",
}
COUNTS = [
    ("domain", "n", "domain questions"),
    ("drift", "tokens", "tokens of the base's own answers for drift and agreement"),
    ("ifeval", "n", "IFEval prompts{each}"),
    ("length", "n", "general prompts for words and truncation"),
    ("open", "n", "open questions"),
]
"""On how much each part rests: part and key of eval.json, what is counted."""


def _results(run: Run, methods: dict[str, Record], opened: bool) -> dict[str, Any]:
    table = [column for column in COLUMNS if column[1] != "open" or opened]
    rows: list[Record] = [{"method": name, "trained": _trained(run, name), "cells": []} for name in methods]
    for _, part, key, text, better in table:
        values = {name: m[part][key] if m.get(part) else None for name, m in methods.items()}
        trained = [value for name, value in values.items() if name != "base" and value is not None]
        best = max(trained, key=lambda value: better * value) if better and len(trained) > 1 else None
        for row, (name, value) in zip(rows, values.items(), strict=True):
            is_best = name != "base" and value is not None and value == best
            row["cells"].append({"text": text(value), "best": is_best, "notes": _notes(name, part, key, methods)})
    parts = [column[1] for column in table]
    samples = max((m["ifeval"].get("samples", 1) for m in methods.values() if m.get("ifeval")), default=1)
    each = f", {samples} answers each" if samples > 1 else ""
    counted = []
    for part, key, counted_as in COUNTS:
        counts = {m[part][key] for m in methods.values() if m.get(part) and m[part].get(key) is not None}
        if counts:
            counted.append(
                " / ".join(format_number(count, 9) for count in sorted(counts)) + f" {counted_as}".format(each=each)
            )
    return {
        "groups": [(text, parts.count(part)) for part, text in GROUPS.items() if part in parts],
        "columns": [{"text": one[0], "starts": parts.index(one[1]) == i} for i, one in enumerate(table)],
        "rows": rows,
        "counts": "; ".join(counted),
        "opened": opened,
    }


def _notes(name: str, part: str, key: str, methods: dict[str, Record]) -> list[str]:
    """Small print under a number: 95% intervals, and the share of the base's score."""
    measured = methods[name].get(part)
    if not measured:
        return []
    if key == "accuracy" and measured.get("n"):
        return [_range(*wilson(measured["accuracy"], measured["n"]))]
    if key == "prompt_strict" and usable(measured.get("low")):
        kept = [] if measured["retention"] is None else [f"{describe_retention(measured)} of base"]
        return [_range(measured["low"], measured["high"]), *kept]
    base = (methods.get("base") or {}).get(part)
    if part == "open" and name != "base" and base:
        return [f"{measured[key] / base[key]:.0%} of base" if base[key] else "base 0"]
    return []


def _range(low: float, high: float) -> str:
    return f"{format_percent(low)} to {format_percent(high)}"


def _trained(run: Run, name: str) -> str:
    """`60 steps, lr 2e-04` of a method that has metrics."""
    rows = run.metrics.get(name)
    if not rows:
        return "untouched" if name == "base" else ""
    rates = [row["lr"] for row in rows if usable(row.get("lr"))]
    chosen = ((run.evaluation or {}).get(name) or {}).get("weights_of")
    taken = f", weights of step {chosen}" if chosen is not None else ""
    return f"{len(rows):,} steps{taken}" + (f", lr {max(rates):.3g}" if rates else "")


def _training(run: Run) -> dict[str, Any]:
    if not run.metrics:
        return {"absent": "Left out: this run has no metrics.jsonl, so nothing was trained yet."}
    distilled = any(usable(row.get("kl_loss")) for rows in run.metrics.values() for row in rows)
    notes = [] if distilled else ["No method of this run distils, so there are no curves of KL, λ and teacher."]
    return {"figures": figures.training_figures(run), "notes": notes + _audit(run)}


def _validation(run: Run) -> dict[str, Any]:
    """Curves of the evaluations made meanwhile, and which weights became the models."""
    notes = [
        f"{method_label(name)} has the weights of step {m['weights_of']}: {m['why']}."
        for name, m in (run.evaluation or {}).items()
        if m.get("weights_of") is not None
    ]
    return {"figures": figures.evaluation_figures(run), "notes": notes}


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
        return {"absent": "Left out: no metrics.jsonl with `seconds` in this run."}
    hidden = [
        f"{method_label(row['method'])} {format_percent(row['hidden'])}" for row in totals if row["hidden"] is not None
    ]
    notes = []
    if any(row["hidden"] for row in totals):
        whose = "Rollout, teacher and" if "teacher" in timing.beside(run, run.main) else "Rollout and"
        notes.append(
            f"{whose} loading weights run beside the learner. The bars split the wall time and count them as far as "
            "the learner waited; the table has their whole time. "
            f"Hidden behind the learner's work: {', '.join(hidden)}."
        )
    if run.summary.get("seconds") is not None:
        notes.append(f"Stage 1 took {format_duration(run.summary['seconds'])}.")
    evaluated = {
        name: sum(value for value in seconds.values() if usable(number(value)))
        for name, m in (run.evaluation or {}).items()
        if isinstance(seconds := m.get("seconds"), dict)
    }
    if any(evaluated.values()):
        texts = [f"{method_label(name)} {format_duration(seconds)}" for name, seconds in evaluated.items() if seconds]
        notes.append(f"Evaluation: {', '.join(texts)}.")
    return {
        "figure": timing.time_figure(run),
        "wall": timing.used_phases(row["wall"] for row in totals),
        "recorded": timing.used_phases(row["recorded"] for row in totals),
        "totals": totals,
        "most": max(row["seconds"] for row in totals),
        "notes": notes,
    }


def _weights(methods: dict[str, Record]) -> dict[str, Any]:
    figure = figures.distance_figure(methods)
    if not figure:
        return {"absent": "Left out: the evaluation did not measure weight distance."}
    distances = {name: m["weight_distance"]["total"] for name, m in methods.items() if m.get("weight_distance")}
    most = max(distances.values()) or 1.0
    totals = [
        {"text": method_label(name), "css": method_css(name), "share": total / most, "value": format_number(total)}
        for name, total in distances.items()
        if name != "base"
    ]
    return {"figure": figure, "totals": totals}
