"""What each section of stage 1's report shows, as values for the template.

A section whose files are not there is its one line of explanation (`absent`) and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raft_ray.refine.gap import CONDITIONED, KINDS, describe, describe_reference
from raft_ray.report.charts import Series, histogram
from raft_ray.report.counts import used_range
from raft_ray.report.figures import Figure, lines_figure
from raft_ray.report.files import Run
from raft_ray.report.page import known
from raft_ray.report.refine_facts import BELOW_TAU, Facts
from raft_ray.report.refine_style import SEGMENT
from raft_ray.report.stage1 import bar, examples, nothing_refined, refused, rewritten, similarity_figure, spelled, used
from raft_ray.report.verdict import Claim
from raft_ray.report.words import format_duration, format_number, format_percent, last_part, number

ACCEPTED_SAMPLES = 4
REFUSED_SAMPLES = 8
"""Over all reasons; each reason has one at least."""

UNMEASURED = "Not measured: refine.gap=false, or stage 1 has not finished (`raft-ray refine RUN --resume` measures it)."
NAMES = {"gold": "Gold answers", "rewrite": "Rewrites", "fused": "Fused answers"}
KIND_CSS = {"gold": "m-base", "rewrite": "s-second", "fused": "m-raft"}
JUDGE_CSS = ("s-first", "m-other0", "m-other1", "m-other2", "m-other3")
RISES = {
    "rewrite_minus_gold": "Rewrite over gold",
    "fused_minus_gold": "Fused over gold",
    "conditioned_minus_fused": "Fused, shown over unseen",
}


def page(run: Run, facts: Facts) -> dict[str, Any]:
    """The template's values."""
    reason = nothing_refined(facts)
    absent = {"absent": f"Left out: {reason}"} if reason else None
    share = format_percent(facts.accepted / facts.rows, 1) if facts.rows else ""
    judges = run.setting("refine.judges")
    return {
        "title": f"Stage 1: {last_part(run.setting('data.train') or run.folder.resolve())}",
        "facts": known(
            [
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
        ),
        "headline": reason[0].upper() + reason[1:]
        if reason
        else f"{facts.accepted:,} of {facts.rows:,} rows have a refined answer ({share}).",
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


def _claims(run: Run, facts: Facts) -> list[Claim]:
    claims = []
    if run.gap:
        rise = run.gap["all"]["fused_minus_gold"]
        shrank = rise["low"] is not None and rise["low"] > 0
        grew = rise["high"] is not None and rise["high"] < 0
        claims.append(Claim(describe(run.gap), "good" if shrank else "bad" if grew else "even"))
        if words := describe_reference(run.gap):
            low = run.gap["all"]["conditioned_minus_fused"]["low"]
            claims.append(Claim(words, "bad" if low is not None and low <= 0 else "even"))
    else:
        claims.append(Claim(f"Compatibility gap: {UNMEASURED}", "even"))
    if facts.refused:
        reason, count = facts.refused.most_common(1)[0]
        why = "below τ" if reason == BELOW_TAU else spelled(reason)
        claims.append(Claim(f"The commonest reason to refuse a rewrite: {why} ({count:,} rows).", "even"))
    return [*claims, Claim(_agreement(facts), "even")]


def _funnel(facts: Facts) -> dict[str, Any]:
    rows = facts.rows
    guards = [(reason, count) for reason, count in facts.refused.most_common() if reason != BELOW_TAU]
    passed = facts.rewritten - sum(count for _, count in guards)
    candidates, unjudged = sum(facts.candidates.values()), facts.candidates["refused"]
    return {
        "funnel": [
            *rewritten(facts),
            *refused(facts, guards),
            bar("past the guards", passed, rows, "s-first"),
            bar("refused: below τ", facts.refused[BELOW_TAU], rows, "s-bad"),
            bar("past τ: accepted", facts.accepted, rows, "s-good"),
        ],
        "used": used(facts),
        "rounds": [
            bar("1 round" if rounds == 1 else f"{rounds} rounds", count, facts.accepted, "s-first")
            for rounds, count in sorted(facts.rounds.items())
        ],
        "rounds_note": f"{candidates:,} candidates; {unjudged:,} of them went unjudged, refused by a guard or by every "
        "judge."
        if candidates
        else "No candidates were judged.",
    }


def _threshold(facts: Facts) -> dict[str, Any]:
    figure = similarity_figure(facts)
    if figure is None:
        return {"absent": "Left out: no row has a similarity."}
    below, above = facts.nearest
    values: dict[str, Any] = {"figure": figure, "below": examples(below), "above": examples(above)}
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
    figures = []
    for place, (judge, counts) in enumerate(sorted(facts.scores.items())):
        group = ("candidates", JUDGE_CSS[place % len(JUDGE_CSS)], counts)
        missing = facts.unscored(judge)
        note = f"{counts.total:,} candidates scored" + (f"; no score for {missing:,} others." if missing else ".")
        figures.append(Figure(judge, note, histogram([group], label=f"Scores of {judge}", x_label="score")))
    failures = run.summary.get("judge_failures")
    told = "not recorded"
    if isinstance(failures, dict):
        texts = [f"{judge} {format_number(number(count), 9)}" for judge, count in failures.items()]
        told = ", ".join(texts) or "none"
    return {"agreement": _agreement(facts), "figures": figures, "notes": [f"Failures of judges: {told}."]}


def _likelihood(facts: Facts) -> Figure | None:
    """How likely the original model finds each kind of answer: a line per kind, as shares of its own rows."""
    drawn = {kind: counts for kind, counts in facts.likelihood.items() if counts.total}
    used_bins = used_range(list(drawn.values())) if drawn else slice(0, 0)
    # An empty bin on either side, so that the lines come down.
    shown = slice(max(0, used_bins.start - 1), used_bins.stop + 1)
    lines = [
        Series(kind, KIND_CSS[kind], counts.middles[shown], [n / counts.total for n in counts.bins[shown]])
        for kind, counts in drawn.items()
    ]
    width = facts.likelihood["gold"].width
    return lines_figure(
        "Log-likelihood of the answers",
        f"Share of rows by likelihood under the original model, in steps of {width:g}; right is likelier.",
        lines,
        x_label="mean log-likelihood per token, nats",
        zero=True,
        form=lambda value: format_percent(value, 0),
    )


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
        parts.append({"name": name, "lines": lines + [line(text, means[key]) for key, text in RISES.items()]})
    return {
        "words": [words for words in (describe(run.gap), describe_reference(run.gap)) if words],
        "figure": _likelihood(facts),
        "parts": parts,
        "notes": [
            "Mean log-likelihood per token (end of turn included) given the question, under the original model, in "
            "nats; higher is likelier. Intervals: 95%, bootstrap over rows; the rises over gold are paired. Rewrites "
            "are all that were written, the refused ones too. Shown: the teacher reads the fused answer in its prompt "
            "(teacher.template) before it."
        ],
    }


def _style(facts: Facts) -> dict[str, Any]:
    lines = []
    for kind in KINDS:
        style = facts.styles[kind]
        if style.texts:
            numbers = (style.words_mean, style.words_median, style.sentences_mean, style.words_per_sentence)
            shares = (style.variety, style.unfinished)
            cells = [f"{style.texts:,}", *map(format_number, numbers), *(format_percent(share, 1) for share in shares)]
            lines.append({"name": NAMES[kind], "css": KIND_CSS[kind], "cells": cells})
    if not lines:
        return {"absent": "Left out: refined/*.parquet holds no rows."}
    words = ["Words, mean", "Words, median", "Sentences", "Words per sentence"]
    return {
        "columns": ["Texts", *words, "Variety", "End mid-sentence"],
        "lines": lines,
        "notes": [
            f"Variety: different words among {SEGMENT} in a row, over all texts (type-token ratio). End mid-sentence: "
            "without any closing mark, as cut-off texts do; bare facts such as a name count here, too."
        ],
    }


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


TABLES: dict[str, tuple[tuple[str, ...], dict[str, Callable[[float | None], str]], str]] = {
    "stages": (
        ("Stage", "Time", "Rows per second"),
        {"seconds": format_duration, "rows_per_second": format_number},
        "Time by stage",
    ),
    "models": (
        ("Model", "Tokens read", "Tokens written", "Cost"),
        {"input_tokens": _whole, "output_tokens": _whole, "cost": format_number},
        "Tokens and cost by model",
    ),
}
"""By key of the summary, an object of objects of numbers: headings, how each number reads, and what it is called."""


def _cost(run: Run) -> dict[str, Any]:
    summary = run.summary
    if not summary:
        return {"absent": "Left out: no _summary.json in refined/; stage 1 has not finished."}
    notes, tables = [], []
    if (seconds := number(summary.get("seconds"))) is not None:
        notes.append(f"Stage 1 took {format_duration(seconds)} in its last run.")
    for key, (headings, columns, called) in TABLES.items():
        found = summary.get(key)
        if not isinstance(found, dict) or not found or not all(isinstance(one, dict) for one in found.values()):
            notes.append(f"{called}: not recorded.")
            continue
        lines = [
            {"name": name, "cells": [form(number(one.get(column))) for column, form in columns.items()]}
            for name, one in found.items()
        ]
        tables.append({"columns": headings, "lines": lines})
    cache, prompts = summary.get("cache"), summary.get("prompts")
    if isinstance(cache, dict):
        notes.append("Cache: " + ", ".join(f"{_whole(number(count))} {name}" for name, count in cache.items()) + ".")
    else:
        notes.append("Cache: not recorded.")
    if isinstance(prompts, dict):
        notes += [f"Prompt {name}: SHA-256 {digest}" for name, digest in prompts.items()]
    else:
        notes.append("Hashes of the prompts: not recorded.")
    return {"tables": tables, "notes": notes}


def _samples(facts: Facts) -> dict[str, Any]:
    each = max(1, REFUSED_SAMPLES // max(1, len(facts.refused)))
    return {"rows": examples(facts.samples(accepted=ACCEPTED_SAMPLES, refused=each))}
