"""The charts of stage 1: similarities, judges' scores, log-likelihoods. Knows no HTML beyond class names."""

from __future__ import annotations

from raft_ray.report import svg
from raft_ray.report.counts import used_range
from raft_ray.report.figures import Figure
from raft_ray.report.refine_facts import Facts
from raft_ray.report.svg import Series
from raft_ray.report.words import percent

KIND_CSS = {"gold": "m-base", "rewrite": "s-second", "fused": "m-raft"}
JUDGE_CSS = ("s-first", "m-other0", "m-other1", "m-other2", "m-other3")


def similarity_figure(facts: Facts) -> Figure | None:
    """Histogram of cos(gold, rewrite): accepted, and refused though some of them pass τ."""
    groups = [(name, css, facts.similarity[name]) for name, css in (("accepted", "s-good"), ("refused", "s-bad"))]
    if not any(counts.total for _, _, counts in groups):
        return None
    marker = (facts.tau, f"τ = {facts.tau:g}") if facts.tau is not None else None
    chart = svg.histogram(
        groups, label="Similarity of rewrites", x_label="cosine of gold answer and rewrite", marker=marker
    )
    note = "Rows by cosine. Right of τ, refused rows failed another check."
    return Figure("Similarity of gold answer and rewrite", note, chart, [(name, css) for name, css, _ in groups])


def score_figures(facts: Facts) -> list[Figure]:
    """A histogram of scores a judge."""
    figures = []
    for place, (judge, counts) in enumerate(sorted(facts.scores.items())):
        css = JUDGE_CSS[place % len(JUDGE_CSS)]
        chart = svg.histogram([("candidates", css, counts)], label=f"Scores of {judge}", x_label="score")
        missing = facts.unscored(judge)
        note = f"{counts.total:,} candidates scored" + (f"; no score for {missing:,} others." if missing else ".")
        figures.append(Figure(judge, note, chart))
    return figures


def likelihood_figure(facts: Facts) -> Figure | None:
    """How likely the original model finds each kind of answer: a line a kind, as shares of its own rows."""
    drawn = {kind: counts for kind, counts in facts.likelihood.items() if counts.total}
    if not drawn:
        return None
    used = used_range(list(drawn.values()))
    # An empty bin on either side, so that the lines come down.
    first, last = max(0, used.start - 1), used.stop + 1
    lines = [
        Series(kind, KIND_CSS[kind], counts.middles[first:last], [n / counts.total for n in counts.bins[first:last]])
        for kind, counts in drawn.items()
    ]
    chart = svg.line_chart(
        lines,
        label="Log-likelihood of the answers",
        x_label="mean log-likelihood a token, nats",
        zero=True,
        form=lambda value: percent(value, 0),
    )
    width = next(iter(drawn.values())).width
    note = f"Share of rows by likelihood under the original model, in steps of {width:g}; right is likelier."
    return Figure("Log-likelihood of the answers", note, chart, [(line.label, line.css) for line in lines])
