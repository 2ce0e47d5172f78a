"""Which figures a run has: training curves, the trade-off, weight distance (`stage1.py`: those of stage 1).

Turns the values of `raft_ray.report.files` into `charts`, each with a title, a line that says how to read it and a
legend. A figure whose values were not recorded is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from raft_ray.evaluate.statistics import wilson
from raft_ray.report.charts import Format, Point, Series, line_chart, scatter
from raft_ray.report.files import Record, Run
from raft_ray.report.words import format_number, format_percent, method_css, method_label, number, usable


@dataclass(frozen=True)
class Figure:
    title: str
    note: str
    chart: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)
    """(name, class)"""


def balance(row: Record) -> float | None:
    """L_SFT / (λ L_KL) of a step: how the two terms of the loss weigh against each other; None without a KL term."""
    sft, kl, weight = row.get("sft_loss"), row.get("kl_loss"), row.get("lambda")
    if not (usable(sft) and usable(kl) and usable(weight)) or kl * weight <= 0:
        return None
    return sft / (weight * kl)


def _share(value: float) -> str:
    return format_percent(value, 0)


CURVES: dict[str, tuple[str | Callable[[Record], float | None], str, dict[str, Any]]] = {
    "SFT loss": (
        "sft_loss",
        "Cross-entropy on the answers trained on, nats per token; weighted by token with distill.loss=dft or eaft.",
        {"smooth": True},
    ),
    "KL loss": ("kl_loss", "Teacher to student on the student's own responses, with T².", {"smooth": True}),
    "Rehearsal KL": (
        "rehearsal_kl",
        "Original model to student on the student's own answers to general prompts, with T².",
        {"smooth": True},
    ),
    "Rehearsal loss": (
        "rehearsal_ce",
        "Cross-entropy on the original model's answers to general prompts, nats per token.",
        {"smooth": True},
    ),
    "Drift": (
        "drift",
        "KL on the answers to general prompts at temperature 1, nats per token; dashed: the budget, if there is one "
        "(distill.drift_budget).",
        {"zero": True, "smooth": True},
    ),
    "CE/KL ratio": (
        balance,
        "L_SFT over λ · L_KL; at 1 (dashed) the two weigh the same in the sum.",
        {"log": True, "reference": 1.0, "smooth": True},
    ),
    "Weight λ of the KL": ("lambda", "L = L_SFT + λ · L_KL; a drift budget's λ weighs rehearsal, too.", {"log": True}),
    "Response length": ("response_length", "Tokens, mean of the step's rollouts.", {"zero": True, "smooth": True}),
    "Truncated responses": (
        "truncated",
        "Share cut at rollout.max_new_tokens.",
        {"zero": True, "form": _share, "smooth": True},
    ),
    "Gradient norm": ("grad_norm", "Global, before clipping.", {"log": True, "smooth": True}),
    "Staleness": ("staleness", "Versions between rollout and use, mean of a step.", {"zero": True, "smooth": True}),
}
"""By title: key or function of a metrics line, note, options of the chart."""


def training_figures(run: Run) -> list[Figure]:
    """Losses, balance, responses and the teacher's mass over the steps, a line per method."""
    figures = {title: _curves(run, title) for title in CURVES}
    if not any(row.get("staleness") for rows in run.metrics.values() for row in rows):
        figures["Staleness"] = None  # Every rollout was on-policy: a flat line at zero says nothing.
    found = [*figures.values()]
    found.insert(list(CURVES).index("Gradient norm"), _mass(run))
    return [figure for figure in found if figure]


EVALUATIONS: dict[str, tuple[Callable[[Record], float | None], str, dict[str, Any]]] = {
    "Validation accuracy": (
        lambda line: line["accuracy"],
        "Share of the validation questions, greedy answers; step 0 is the original model.",
        {"form": _share},
    ),
    "Drift": (
        lambda line: line["drift"],
        "From the original model on its own answers, nats per token.",
        {"zero": True},
    ),
    "Words of general answers": (
        lambda line: line["of_base"].get("words"),
        "Mean, of the original model's; level with it (dashed) is better.",
        {"form": _share, "reference": 1.0},
    ),
    "Instruction following": (
        lambda line: line["of_base"].get("ifeval"),
        "IFEval prompts followed strictly, of the original model's.",
        {"form": _share, "reference": 1.0},
    ),
}
"""By title: value of an evaluation's line, note, options of the chart."""


def evaluation_figures(run: Run) -> list[Figure]:
    """What was gained and lost over the steps, by the evaluations made meanwhile, a line per method."""
    found = []
    for title, (value, note, options) in EVALUATIONS.items():
        lines = [
            Series(
                method_label(name), method_css(name), [float(one["step"]) for one in rows], [value(one) for one in rows]
            )
            for name, rows in run.evaluations.items()
        ]
        found.append(lines_figure(title, note, lines, **options))
    return [figure for figure in found if figure]


def lines_figure(title: str, note: str, lines: list[Series], **options: Any) -> Figure | None:
    """A line chart with its legend; none where no line has a value."""
    lines = [line for line in lines if any(usable(y) for y in line.y)]
    if not lines:
        return None
    return Figure(title, note, line_chart(lines, label=title, **options), [(line.label, line.css) for line in lines])


def _curves(run: Run, title: str) -> Figure | None:
    value, note, options = CURVES[title]
    if title == "Drift" and run.setting("distill.balance") == "budget":
        options = options | {"reference": number(run.setting("distill.drift_budget"))}
    lines = [
        Series(
            method_label(name),
            method_css(name),
            [float(row["step"]) for row in rows],
            [row.get(value) if isinstance(value, str) else value(row) for row in rows],
        )
        for name, rows in run.metrics.items()
    ]
    values = [y for line in lines for y in line.y if usable(y)]
    if options.get("log"):
        options = options | {"log": bool(values) and min(values) > 0 and max(values) / min(values) > 8}
        note += " Logarithmic." if options["log"] else ""
    return lines_figure(title, note, lines, **options)


def _mass(run: Run) -> Figure | None:
    """Teacher's and student's probability on the teacher's top-K set, main method."""
    rows = run.metrics.get(run.main, [])
    steps = [float(row["step"]) for row in rows]
    lines = [
        Series(name, css, steps, [row.get(f"{name}_mass") for row in rows])
        for name, css in (("teacher", "s-first"), ("student", "s-second"))
    ]
    note = f"Probability on the teacher's top {run.setting('distill.top_k') or 'K'} tokens, {method_label(run.main)}."
    return lines_figure("Mass on the teacher's set", note, lines, form=lambda value: f"{100 * value:.4g}%")


TRADEOFFS: list[tuple[str, str, str, tuple[str, str], Format]] = [
    (
        "drift",
        "Up and to the left is better: the domain learned, little else changed.",
        "drift, nats per token",
        ("drift", "kl"),
        format_number,
    ),
    (
        "instruction following",
        "Up and to the right is better.",
        "IFEval, prompt-strict",
        ("ifeval", "prompt_strict"),
        _share,
    ),
    ("open questions", "Up and to the right is better.", "open questions, judges' mean", ("open", "score"), _share),
    (
        "answer length",
        "Level with the base is better: short answers to everything are a sign of forgetting.",
        "words in a general answer, mean",
        ("length", "words_mean"),
        format_number,
    ),
]
"""What accuracy is drawn against, note, name of the axis, part and key of eval.json, how it reads."""


def tradeoff_figures(methods: dict[str, Record]) -> list[Figure]:
    """Domain accuracy against drift, instruction following, open questions and answer length, a point per method."""
    figures = []
    for against, note, x_label, (part, key), form in TRADEOFFS:
        points = []
        for name, method in methods.items():
            domain, x = method.get("domain"), (method.get(part) or {}).get(key)
            if domain and usable(x):
                low, high = wilson(domain["accuracy"], domain.get("n") or 0)
                said = (
                    f"{method_label(name)}\ndomain accuracy {format_percent(domain['accuracy'], 1)} "
                    f"(95% interval {format_percent(low, 1)} to {format_percent(high, 1)})\n{x_label}: {form(x)}"
                )
                points.append(Point(method_label(name), method_css(name), x, domain["accuracy"], low, high, said))
        if points:
            title = f"Accuracy against {against}"
            chart = scatter(points, label=title, x_label=x_label, x_form=form, y_form=_share)
            figures.append(Figure(title, note, chart))
    return figures


def distance_figure(methods: dict[str, Record]) -> Figure | None:
    """Relative l2 distance to the base by layer, a line per method; names that are no numbers are left to the note."""
    lines, rest = [], []
    for name, m in methods.items():
        layers = (m.get("weight_distance") or {}).get("layers") or {}
        places = sorted((key for key in layers if key.isdigit()), key=int)
        rest += [
            f"{method_label(name)} {key} {format_number(value)}" for key, value in layers.items() if key not in places
        ]
        if places and name != "base":
            lines.append(
                Series(method_label(name), method_css(name), [*map(float, places)], [layers[key] for key in places])
            )
    note = "Relative l2 distance to the base model." + (f" Outside the layers: {', '.join(rest)}." if rest else "")
    return lines_figure("Weight distance by layer", note, lines, x_label="layer", zero=True)
