"""What each section of stage 1's report shows, as values for the template. Knows nothing about HTML or SVG.

A section whose files are not there is its one line of explanation (`absent`) and nothing else.
"""

from __future__ import annotations

from typing import Any

from raft_ray.refine.gap import CONDITIONED, KINDS, in_words, reference_in_words
from raft_ray.report.files import Run
from raft_ray.report.refine_facts import BELOW_TAU, Facts
from raft_ray.report.refine_figures import KIND_CSS, likelihood_figure, score_figures, similarity_figure
from raft_ray.report.refine_style import SEGMENT
from raft_ray.report.stage1 import bar, examples, nothing_refined, spelled, unwritten, used
from raft_ray.report.words import duration, last_part, number, percent, short

ACCEPTED_SAMPLES = 4
REFUSED_SAMPLES = 8
"""Over all reasons; each reason has one at least."""

UNMEASURED = "Not measured: refine.gap=false, or stage 1 has not finished (`raft-ray refine RUN --resume` measures it)."
NAMES = {"gold": "Gold answers", "rewrite": "Rewrites", "fused": "Fused answers"}
RISES = {
    "rewrite_minus_gold": "Rewrite over gold",
    "fused_minus_gold": "Fused over gold",
    "conditioned_minus_fused": "Fused, shown over unseen",
}


def page(run: Run, facts: Facts) -> dict[str, Any]:
    """The template's values."""
    reason = nothing_refined(facts)
    absent = {"absent": f"Left out: {reason}"} if reason else None
    return {
        "title": f"Stage 1: {last_part(run.setting('data.train') or run.folder.resolve())}",
        "facts": _header(run, facts),
        "headline": _headline(facts, reason),
        "claims": [] if reason else _claims(run, facts),
        "sections": [
            ("funnel", "From rows to answers", absent or _funnel(facts)),
            ("threshold", "Similarity and the threshold", absent or _threshold(facts)),
            ("judges", "Judges", absent or _judges(run, facts)),
            ("gap", "Compatibility gap", _gap(run, facts)),
            ("style", "Length and style", _style(facts)),
            ("cost", "Time and cost", _cost(run)),
            ("samples", "Rows before and after", absent or _samples(facts)),
        ],
    }


def _header(run: Run, facts: Facts) -> list[tuple[str, str]]:
    judges = run.setting("refine.judges")
    pairs: list[tuple[str, Any]] = [
        ("Model", run.setting("model.path")),
        ("Data", run.setting("data.train")),
        ("Rows", f"{facts.rows:,}"),
        ("Filter τ", run.setting("refine.tau")),
        ("Embedder", run.setting("refine.embedder")),
        ("Rewriter", run.setting("refine.rewriter")),
        ("Fuser", run.setting("refine.fuser")),
        ("Judges", ", ".join(map(str, judges)) if isinstance(judges, list) else None),
        ("Seed", run.setting("run.seed")),
        ("Finished", f"{run.finished:%Y-%m-%d %H:%M} UTC" if run.finished else None),
    ]
    return [(label, str(value)) for label, value in pairs if value is not None and value != ""]


def _headline(facts: Facts, reason: str | None) -> str:
    if reason:
        return reason[0].upper() + reason[1:]
    return f"{facts.accepted:,} of {facts.rows:,} rows have a refined answer ({percent(facts.accepted / facts.rows)})."


def _claims(run: Run, facts: Facts) -> list[dict[str, str]]:
    claims = []
    if run.gap:
        rise = run.gap["all"]["fused_minus_gold"]
        shrank = rise["low"] is not None and rise["low"] > 0
        grew = rise["high"] is not None and rise["high"] < 0
        claims.append({"tone": "good" if shrank else "bad" if grew else "even", "text": in_words(run.gap)})
        if words := reference_in_words(run.gap):
            low = run.gap["all"]["conditioned_minus_fused"]["low"]
            claims.append({"tone": "bad" if low is not None and low <= 0 else "even", "text": words})
    else:
        claims.append({"tone": "even", "text": f"Compatibility gap: {UNMEASURED}"})
    if facts.refused:
        reason, count = facts.refused.most_common(1)[0]
        why = "below τ" if reason == BELOW_TAU else spelled(reason)
        text = f"The commonest reason to refuse a rewrite: {why} ({count:,} rows)."
        claims.append({"tone": "even", "text": text})
    claims.append({"tone": "even", "text": _agreement(facts)})
    return claims


def _funnel(facts: Facts) -> dict[str, Any]:
    rows = facts.rows
    guards = [(reason, count) for reason, count in facts.refused.most_common() if reason != BELOW_TAU]
    passed = facts.rewritten - sum(count for _, count in guards)
    funnel = [
        bar("rows", rows, rows, "s-first"),
        *unwritten(facts),
        bar("rewritten", facts.rewritten, rows, "s-first"),
        *(bar(f"refused: {spelled(reason)}", count, rows, "s-bad") for reason, count in guards),
        bar("past the guards", passed, rows, "s-first"),
        bar("refused: below τ", facts.refused[BELOW_TAU], rows, "s-bad"),
        bar("past τ: accepted", facts.accepted, rows, "s-good"),
    ]
    rounds = [
        bar(f"{number_of} rounds" if number_of != 1 else "1 round", count, facts.accepted, "s-first")
        for number_of, count in sorted(facts.rounds.items())
    ]
    candidates = sum(facts.candidates.values())
    note = "No candidates were judged."
    if candidates:
        refused = facts.candidates["refused"]
        note = f"{candidates:,} candidates; {refused:,} of them went unjudged, refused by a guard or by every judge."
    return {"funnel": funnel, "used": used(facts), "rounds": rounds, "rounds_note": note}


def _threshold(facts: Facts) -> dict[str, Any]:
    figure = similarity_figure(facts)
    if figure is None:
        return {"absent": "Left out: no row has a similarity."}
    below, above = facts.nearest
    values: dict[str, Any] = {"figure": figure, "below": examples(below), "above": examples(above), "tau": facts.tau}
    if facts.tau is None:
        values["notes"] = ["The rows at τ are left out: this run has no config.yaml that says what τ was."]
    return values


def _agreement(facts: Facts) -> str:
    found = facts.agreement
    if found.alpha is None:
        return f"Judges' agreement: {found.reason}."
    return (
        f"Judges' agreement: Krippendorff's alpha {found.alpha:.2f} over {found.candidates:,} candidates and "
        f"{found.judges} judges (1 is full agreement, 0 is chance)."
    )


def _judges(run: Run, facts: Facts) -> dict[str, Any]:
    if not facts.scores:
        return {"absent": "Left out: no candidate was judged (refine.fuser=none, or no row was accepted)."}
    failures = run.summary.get("judge_failures")
    if isinstance(failures, dict):
        texts = [f"{judge} {short(number(count), 9)}" for judge, count in failures.items()]
        note = f"Failures of judges: {', '.join(texts) or 'none'}."
    else:
        note = "Failures of judges: not recorded."
    return {"agreement": _agreement(facts), "figures": score_figures(facts), "notes": [note]}


def _gap(run: Run, facts: Facts) -> dict[str, Any]:
    if run.gap is None:
        return {"absent": UNMEASURED.replace("`", "")}

    def line(name: str, interval: dict[str, Any], css: str = "") -> dict[str, Any]:
        low, high = interval["low"], interval["high"]
        between = "–" if low is None else f"{low:.3f} to {high:.3f}"
        mean = "–" if interval["mean"] is None else f"{interval['mean']:.3f}"
        return {"name": name, "mean": mean, "interval": between, "rows": f"{interval['n']:,}", "css": css}

    parts = []
    for part, name in (("all", "All rows"), ("accepted", "Accepted rows")):
        means = run.gap[part]
        lines = [line(NAMES[kind], means[kind], KIND_CSS[kind]) for kind in KINDS]
        lines.append(line("Fused answers, shown to the teacher", means[CONDITIONED]))
        lines += [line(text, means[key]) for key, text in RISES.items()]
        parts.append({"name": name, "lines": lines})
    return {
        "words": [words for words in (in_words(run.gap), reference_in_words(run.gap)) if words],
        "figure": likelihood_figure(facts),
        "parts": parts,
        "notes": [
            "Mean log-likelihood a token (end of turn included) given the question, under the original model, in nats; "
            "higher is likelier. Intervals: 95%, bootstrap over rows; the rises over gold are paired. Rewrites "
            "are all that were written, the refused ones too. Shown: the teacher reads the fused answer in its prompt "
            "(teacher.template) before it."
        ],
    }


def _style(facts: Facts) -> dict[str, Any]:
    lines = []
    for kind in KINDS:
        style = facts.styles[kind]
        if style.texts:
            cells = [
                f"{style.texts:,}",
                short(style.words_mean),
                short(style.words_median),
                short(style.sentences_mean),
                short(style.words_a_sentence),
                percent(style.variety),
                percent(style.unfinished),
            ]
            lines.append({"name": NAMES[kind], "css": KIND_CSS[kind], "cells": cells})
    if not lines:
        return {"absent": "Left out: refined/*.parquet holds no rows."}
    return {
        "columns": [
            "Texts",
            "Words, mean",
            "Words, median",
            "Sentences",
            "Words a sentence",
            "Variety",
            "End mid-sentence",
        ],
        "lines": lines,
        "notes": [
            f"Variety: different words among {SEGMENT} in a row, over all texts (type-token ratio). End mid-sentence: "
            "without any closing mark, as cut-off texts do; bare facts such as a name count here, too."
        ],
    }


def _cost(run: Run) -> dict[str, Any]:
    summary = run.summary
    if not summary:
        return {"absent": "Left out: no _summary.json in refined/; stage 1 has not finished."}
    notes = []
    if (seconds := number(summary.get("seconds"))) is not None:
        notes.append(f"Stage 1 took {duration(seconds)} in its last run.")
    stages = _table(summary, "stages", {"seconds": duration, "rows_per_second": short})
    models = _table(summary, "models", {"input_tokens": _whole, "output_tokens": _whole, "cost": short})
    if not stages:
        notes.append("Time by stage: not recorded.")
    if not models:
        notes.append("Tokens and cost by model: not recorded.")
    cache = summary.get("cache")
    if isinstance(cache, dict):
        notes.append("Cache: " + ", ".join(f"{_whole(number(count))} {name}" for name, count in cache.items()) + ".")
    else:
        notes.append("Cache: not recorded.")
    prompts = summary.get("prompts")
    if isinstance(prompts, dict):
        notes += [f"Prompt {name}: SHA-256 {digest}" for name, digest in prompts.items()]
    else:
        notes.append("Hashes of the prompts: not recorded.")
    return {"tables": [table for table in (stages, models) if table], "notes": notes}


HEADINGS = {
    "stages": "Stage",
    "models": "Model",
    "seconds": "Time",
    "rows_per_second": "Rows a second",
    "input_tokens": "Tokens read",
    "output_tokens": "Tokens written",
    "cost": "Cost",
}


def _table(summary: dict[str, Any], key: str, columns: dict[str, Any]) -> dict[str, Any] | None:
    """A table of the summary's `key`, an object of objects of numbers; none where it was not recorded."""
    value = summary.get(key)
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()) or not value:
        return None
    lines = [
        {"name": name, "cells": [form(number(one.get(column))) for column, form in columns.items()]}
        for name, one in value.items()
    ]
    return {"columns": [HEADINGS[key], *(HEADINGS[column] for column in columns)], "lines": lines}


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _samples(facts: Facts) -> dict[str, Any]:
    each = max(1, REFUSED_SAMPLES // max(1, len(facts.refused)))
    return {"rows": examples(facts.samples(accepted=ACCEPTED_SAMPLES, refused=each))}
