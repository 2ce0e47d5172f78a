"""Which figures a run has: training curves, the trade-off, weight distance (`refine_figures.py`: stage 1).

Turns the values of `raft_ray.report.files` into charts of `raft_ray.report.svg`, each with a title, a line that
says how to read it and a legend. Knows no HTML beyond the class names of methods. A figure whose
values were not recorded is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup

from raft_ray.evaluate.statistics import wilson
from raft_ray.report import svg
from raft_ray.report.files import Row, Run
from raft_ray.report.svg import Format, Point, Series
from raft_ray.report.words import method_label, percent, short, usable

Legend = list[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    title: str
    note: str
    chart: Markup
    legend: Legend = field(default_factory=list)


def method_css(name: str) -> str:
    """The class that colours a method; names that are not the usual ones share four spare colours."""
    if name in ("base", "sft", "fapm", "sdft", "opd", "raft"):
        return f"m-{name}"
    return f"m-other{sum(name.encode()) % 4}"


def training_figures(run: Run) -> list[Figure]:
    """Losses, balance, responses and the teacher's mass over the steps, a line a method."""
    figures = [
        _curves(run, "sft_loss", "SFT loss", "Cross-entropy on the answers trained on, nats a token.", smooth=True),
        _curves(run, "kl_loss", "KL loss", "Teacher to student on the student's own responses, with T².", smooth=True),
        _curves(
            run,
            balance,
            "CE/KL ratio",
            "L_SFT over λ · L_KL; at 1 (dashed) the two weigh the same in the sum.",
            log=True,
            reference=1.0,
            smooth=True,
        ),
        _curves(run, "lambda", "Weight λ of the KL", "L = L_SFT + λ · L_KL.", log=True),
        _curves(
            run, "response_length", "Response length", "Tokens, mean of the step's rollouts.", zero=True, smooth=True
        ),
        _curves(
            run,
            "truncated",
            "Truncated responses",
            "Share cut at rollout.max_new_tokens.",
            zero=True,
            form=_share,
            smooth=True,
        ),
        _mass(run),
        _curves(run, "grad_norm", "Gradient norm", "Global, before clipping.", log=True, smooth=True),
        _staleness(run),
    ]
    return [figure for figure in figures if figure]


def balance(row: Row) -> float | None:
    """L_SFT / (λ L_KL) of a step: how the two terms of the loss weigh against each other; None without a KL term."""
    sft, kl, weight = row.get("sft_loss"), row.get("kl_loss"), row.get("lambda")
    if not (usable(sft) and usable(kl) and usable(weight)) or kl * weight <= 0:
        return None
    return sft / (weight * kl)


def _share(value: float) -> str:
    return percent(value, 0)


def _fine_share(value: float) -> str:
    return f"{100 * value:.4g}%"


def _column(rows: list[Row], key: str) -> list[float | None]:
    return [row.get(key) for row in rows]


def _has_values(values: list[float | None]) -> bool:
    return any(usable(value) for value in values)


def _curves(
    run: Run,
    value: str | Callable[[Row], float | None],
    title: str,
    note: str,
    *,
    log: bool = False,
    zero: bool = False,
    reference: float | None = None,
    smooth: bool = False,
    form: Format = short,
) -> Figure | None:
    lines = [
        Series(
            method_label(name),
            method_css(name),
            [float(row["step"]) for row in rows],
            _column(rows, value) if isinstance(value, str) else [value(row) for row in rows],
        )
        for name, rows in run.metrics.items()
    ]
    lines = [line for line in lines if _has_values(list(line.y))]
    if not lines:
        return None
    if log:
        values = [y for line in lines for y in line.y if usable(y)]
        log = min(values) > 0 and max(values) / min(values) > 8
    if log:
        note += " Logarithmic."
    chart = svg.line_chart(lines, label=title, log=log, zero=zero, reference=reference, smooth=smooth, form=form)
    return Figure(title, note, chart, [(line.label, line.css) for line in lines])


def _mass(run: Run) -> Figure | None:
    """Teacher's and student's probability on the teacher's top-K set, main method."""
    rows = run.metrics.get(run.main, [])
    steps = [float(row["step"]) for row in rows]
    lines = [
        Series("teacher", "s-first", steps, _column(rows, "teacher_mass")),
        Series("student", "s-second", steps, _column(rows, "student_mass")),
    ]
    lines = [line for line in lines if _has_values(list(line.y))]
    if not lines:
        return None
    k = run.setting("distill.top_k")
    note = f"Probability on the teacher's top {k if k else 'K'} tokens, {method_label(run.main)}."
    chart = svg.line_chart(lines, label="Mass on the teacher's set", form=_fine_share)
    return Figure("Mass on the teacher's set", note, chart, [(line.label, line.css) for line in lines])


def _staleness(run: Run) -> Figure | None:
    """Left out where every rollout was on-policy: a flat line at zero says nothing."""
    values = [value for rows in run.metrics.values() for value in _column(rows, "staleness") if usable(value)]
    if not any(values):
        return None
    return _curves(
        run, "staleness", "Staleness", "Versions between rollout and use, mean of a step.", zero=True, smooth=True
    )


def tradeoff_figures(methods: dict[str, Row]) -> list[Figure]:
    """Domain accuracy against drift, instruction following and answer length, a point a method."""
    axes: list[tuple[str, str, str, Callable[[Row], float | None], Format]] = [
        (
            "Accuracy against drift",
            "Up and to the left is better: the domain learned, little else changed.",
            "drift, nats a token",
            lambda m: (m.get("drift") or {}).get("kl"),
            short,
        ),
        (
            "Accuracy against instruction following",
            "Up and to the right is better.",
            "IFEval, prompt-strict",
            lambda m: (m.get("ifeval") or {}).get("prompt_strict"),
            _share,
        ),
        (
            "Accuracy against open questions",
            "Up and to the right is better.",
            "open questions, judges' mean",
            lambda m: (m.get("open") or {}).get("score"),
            _share,
        ),
        (
            "Accuracy against answer length",
            "Level with the base is better: short answers to everything are a sign of forgetting.",
            "words in a general answer, mean",
            lambda m: (m.get("length") or {}).get("words_mean"),
            short,
        ),
    ]
    figures = []
    for title, note, x_label, value, form in axes:
        points = [_point(name, m, value(m), x_label, form) for name, m in methods.items() if m.get("domain")]
        drawn = [point for point in points if point]
        if drawn:
            chart = svg.scatter(drawn, label=title, x_label=x_label, x_form=form, y_form=_share)
            figures.append(Figure(title, note, chart))
    return figures


def _point(name: str, method: Row, x: float | None, x_label: str, form: Format) -> Point | None:
    domain = method["domain"]
    if not usable(x):
        return None
    low, high = wilson(domain["accuracy"], domain.get("n") or 0)
    label = method_label(name)
    note = f"{label}\ndomain accuracy {percent(domain['accuracy'])} (95% interval {percent(low)} to {percent(high)})"
    return Point(label, method_css(name), x, domain["accuracy"], low, high, f"{note}\n{x_label}: {form(x)}")


def distance_figure(methods: dict[str, Row]) -> Figure | None:
    """Relative l2 distance to the base by layer, a line a method; names that are no numbers are left to the note."""
    lines, rest = [], []
    for name, m in methods.items():
        layers = (m.get("weight_distance") or {}).get("layers") or {}
        numbered = sorted((int(key), value) for key, value in layers.items() if key.isdigit())
        rest += [f"{method_label(name)} {key} {short(value)}" for key, value in layers.items() if not key.isdigit()]
        if numbered and name != "base":
            lines.append(
                Series(method_label(name), method_css(name), [float(i) for i, _ in numbered], [v for _, v in numbered])
            )
    if not lines:
        return None
    chart = svg.line_chart(lines, label="Weight distance by layer", x_label="layer", zero=True)
    note = "Relative l2 distance to the base model." + (f" Outside the layers: {', '.join(rest)}." if rest else "")
    return Figure("Weight distance by layer", note, chart, [(line.label, line.css) for line in lines])
