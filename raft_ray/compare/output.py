"""A comparison as files: `compare.json`, `.csv`, `.md` and one self-contained page, `.html`.

Every number carries its interval where it has one. Knows nothing about how anything was measured.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from raft_ray.compare.charts import Traces, course_figures, gain_figures
from raft_ray.compare.verdict import verdict
from raft_ray.files import write_whole
from raft_ray.printable import printable
from raft_ray.report.answers import open_answers
from raft_ray.report.svg import Format
from raft_ray.report.words import about, method_label, short

_NUMBERS = {
    "drift": "Drift (nats a token)",
    "drift_first": "Drift (first tokens)",
    "agreement": "Top-1 agreement",
    "words": "Words (general)",
    "weight_distance": "Weight distance",
}


def write_comparison(
    folder: Path,
    comparison: dict[str, Any],
    failed: dict[str, str],
    facts: dict[str, str],
    traces: Traces | None = None,
) -> Path:
    """Write all four files into `folder`; returns the path of the page.

    Args:
        failed: reason by training that failed.
        facts: what was compared (model, data, steps), in the order shown.
        traces: for the curves and the samples of answers on the page.
    """
    lines = verdict(comparison, failed)
    content = {"facts": facts, "verdict": lines, "failed": failed, **comparison}
    texts = {
        "json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False),
        "csv": _csv(comparison),
        "md": _markdown(comparison, lines, facts),
        "html": _html(comparison, lines, facts, traces),
    }
    for kind, text in texts.items():
        write_whole(folder / f"compare.{kind}", text, errors="replace")
    return folder / "compare.html"


def table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of cells for each method."""
    methods = comparison["methods"]
    scores = list(dict.fromkeys(score for result in methods.values() for score in result["scores"]))
    columns = ["Method", "Seeds", *(_label(score) for score in scores), *_NUMBERS.values(), "Front"]
    rows = []
    for name, result in methods.items():
        point = comparison["chosen"].get(name)
        cells = [method_label(name) + (f" ({point})" if point else ""), str(result["seeds"])]
        cells += [_score_cell(score, result["scores"][score], name) for score in scores]
        cells += [_number_cell(result[key]) for key in _NUMBERS]
        rows.append([*cells, "yes" if name in comparison["front"] else ""])
    return columns, rows


def points_table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of cells for each point of the grid; no rows without a grid."""
    points = comparison["points"]
    scores = list(dict.fromkeys(score for point in points for score in point["scores"]))
    columns = ["Method", "Point", "Seeds", *(_label(score) for score in scores), *_NUMBERS.values(), "Chosen", "Front"]
    rows = []
    for point in points:
        cells = [method_label(point["method"]), point["point"] or "-", str(point["seeds"])]
        cells += [_number_cell(point["scores"][score], about) for score in scores]
        cells += [_number_cell(point[key]) for key in _NUMBERS]
        rows.append([*cells, "yes" if point["chosen"] else "", "yes" if point["front"] else ""])
    return columns, rows


def _score_cell(score: str, found: dict[str, Any] | None, name: str) -> str:
    if found is None:
        return "-"
    text = f"{about(found['mean'])} [{about(found['low'])}, {about(found['high'])}]"
    if name == "base" or found["base"] is None:
        return text
    if score == "domain":  # gained rather than kept
        return f"{text} ({100 * (found['mean'] - found['base']):+.0f} points)"
    kept = "base 0" if found["retention"] is None else f"{found['retention']:.0%} of base"
    return f"{text} ({kept})"


def _number_cell(number: dict[str, Any] | None, form: Format = short) -> str:
    if number is None:
        return "-"
    text = form(number["mean"])
    return text if number["low"] is None else f"{text} [{form(number['low'])}, {form(number['high'])}]"


def _label(score: str) -> str:
    labels = {"domain": "Domain accuracy", "ifeval": "IFEval", "open": "Open questions (judged)"}
    return labels.get(score, score.replace("mmlu", "MMLU"))


def _csv(comparison: dict[str, Any]) -> str:
    """A line a method and measure, then one a point and measure: the same columns whatever was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "point", "seeds", "measure", "mean", "low", "high", "retention", "difference", "p"])
    for name, result in comparison["methods"].items():
        for measure, value in _measures(result):
            against = value.get("against") or {}
            gap = against.get("difference", {}).get("mean")
            numbers = [value["mean"], value["low"], value["high"], value.get("retention"), gap, against.get("p")]
            named = map(_cell, (name, comparison["chosen"].get(name, "")))
            writer.writerow([*named, result["seeds"], _cell(measure), *numbers])
    for point in comparison["points"]:
        if not point["chosen"]:
            for measure, value in _measures(point):
                numbers = [value["mean"], value["low"], value["high"]]
                named = map(_cell, (point["method"], point["point"]))
                writer.writerow([*named, point["seeds"], _cell(measure), *numbers, "", "", ""])
    return text.getvalue()


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _measures(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = {**result["scores"], **{key: result[key] for key in _NUMBERS}}
    return [(measure, value) for measure, value in found.items() if value is not None]


def _markdown(comparison: dict[str, Any], lines: list[str], facts: dict[str, str]) -> str:
    parts = [
        "# Comparison",
        "\n".join(f"- {name}: {_escaped(value)}" for name, value in facts.items()),
        "\n".join(f"- {_escaped(line)}" for line in lines),
        _grid(*table(comparison)),
    ]
    if comparison["points"]:
        parts += ["## All points", _grid(*points_table(comparison))]
    return "\n\n".join(parts) + "\n"


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in [columns, ["---"] * len(columns), *rows])


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _html(comparison: dict[str, Any], lines: list[str], facts: dict[str, str], traces: Traces | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from raft_ray.report.figures import method_css

    environment = Environment(loader=PackageLoader("raft_ray", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(label=method_label, css=method_css)
    columns, rows = table(comparison)
    point_columns, points = points_table(comparison)
    scores = [score for result in comparison["methods"].values() for score in result["scores"]]
    return environment.get_template("compare/compare.html.j2").render(
        facts=facts,
        verdict=lines,
        columns=columns,
        rows=[(method_css(name), cells) for name, cells in zip(comparison["methods"], rows, strict=True)],
        point_columns=point_columns,
        points=[(method_css(one["method"]), cells) for one, cells in zip(comparison["points"], points, strict=True)],
        gains=gain_figures(comparison, {score: _label(score) for score in scores}),
        courses=course_figures(traces) if traces else [],
        open_answers=open_answers(traces.run.main, traces.blocks) if traces else [],
    )
