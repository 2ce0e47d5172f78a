"""A comparison as files: `compare.json`, `.csv`, `.md` and one self-contained page, `.html`.

Every number carries its interval where it has one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raft_ray.compare.charts import Traces, course_figures, gain_figures
from raft_ray.compare.comparison import BASE, NUMBERS
from raft_ray.compare.verdict import score_label, verdict
from raft_ray.evaluate.statistics import describe_retention
from raft_ray.files import write_whole
from raft_ray.printable import printable
from raft_ray.report import write_page
from raft_ray.report.answers import side_by_side
from raft_ray.report.kinds import KindsTable, kinds_table
from raft_ray.report.words import format_number, format_percent, method_css, method_label

Table = tuple[list[str], list[list[str]]]
"""Column names, and a row of cells for each method or point."""


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
    }
    for kind, text in texts.items():
        write_whole(folder / f"compare.{kind}", text, errors="replace")
    (columns, rows), (point_columns, points) = table(comparison), points_table(comparison)
    values = {
        "facts": facts,
        "verdict": lines,
        "columns": columns,
        "rows": [(method_css(name), cells) for name, cells in zip(comparison["methods"], rows, strict=True)],
        "point_columns": point_columns,
        "points": [(method_css(one["method"]), row) for one, row in zip(comparison["points"], points, strict=True)],
        "kinds_table": _kinds(comparison),
        "gains": gain_figures(comparison),
        "courses": course_figures(traces) if traces else [],
        "open_answers": side_by_side(traces.run.main, traces.blocks, "open_answers") if traces else [],
    }
    return write_page(folder / "compare.html", "compare/compare.html.j2", values)


def table(comparison: dict[str, Any]) -> Table:
    """The methods, each at its chosen point."""
    rows = []
    for name, result in comparison["methods"].items():
        point = comparison["chosen"].get(name)
        cells = [method_label(name) + (f" ({point})" if point else ""), str(result["seeds"])]
        cells += [_score_cell(score, found, name) for score, found in result["scores"].items()]
        cells += [_number_cell(result[key]) for key in NUMBERS]
        rows.append([*cells, _yes(name in comparison["front"])])
    return ["Method", "Seeds", *_measured(comparison["methods"].values()), "Front"], rows


def points_table(comparison: dict[str, Any]) -> Table:
    """Every point of the grid; no rows without a grid."""
    points = comparison["points"]
    rows = []
    for point in points:
        cells = [method_label(point["method"]), point["point"] or "-", str(point["seeds"])]
        cells += [_number_cell(found, format_percent) for found in point["scores"].values()]
        cells += [_number_cell(point[key]) for key in NUMBERS]
        rows.append([*cells, _yes(point["chosen"]), _yes(point["front"])])
    return ["Method", "Point", "Seeds", *_measured(points), "Chosen", "Front"], rows


def _kinds(comparison: dict[str, Any]) -> KindsTable:
    return kinds_table({name: result["ifeval_kinds"] for name, result in comparison["methods"].items()})


def _measured(results: Any) -> list[str]:
    """The columns of scores, which all results have in the same order, and numbers."""
    scores: dict[str, Any] = next((result["scores"] for result in results), {})
    return [*map(score_label, scores), *(called for _, _, called in NUMBERS.values())]


def _yes(is_so: bool) -> str:
    return "yes" if is_so else ""


def _score_cell(score: str, found: dict[str, Any] | None, name: str) -> str:
    text = _number_cell(found, format_percent)
    if found is None or name == BASE or found["base"] is None:
        return text
    if score == "domain":  # gained rather than kept
        return f"{text} ({100 * (found['mean'] - found['base']):+.0f} points)"
    kept = "base 0" if found["retention"] is None else f"{describe_retention(found)} of base"
    return f"{text} ({kept})"


def _number_cell(number: dict[str, Any] | None, form: Callable[[float], str] = format_number) -> str:
    if number is None:
        return "-"
    text = form(number["mean"])
    return text if number["low"] is None else f"{text} [{form(number['low'])}, {form(number['high'])}]"


def _csv(comparison: dict[str, Any]) -> str:
    """A line per method and measure, then one per point and measure: the same columns whatever was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kept = ["retention", "retention_low", "retention_high"]
    writer.writerow(["method", "point", "seeds", "measure", "mean", "low", "high", *kept, "difference", "p"])
    chosen = comparison["chosen"]
    results = [(name, chosen.get(name, ""), result) for name, result in comparison["methods"].items()]
    results += [(one["method"], one["point"], one) for one in comparison["points"] if not one["chosen"]]
    for name, point, result in results:
        for measure, value in {**result["scores"], **{key: result[key] for key in NUMBERS}}.items():
            if value is not None:
                against = value.get("against") or {}
                numbers = [value["mean"], value["low"], value["high"], *map(value.get, kept)]
                numbers += [against.get("difference", {}).get("mean"), against.get("p")]
                writer.writerow([_cell(name), _cell(point), result["seeds"], _cell(measure), *numbers])
    return text.getvalue()


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _markdown(comparison: dict[str, Any], lines: list[str], facts: dict[str, str]) -> str:
    parts = [
        "# Comparison",
        "\n".join(f"- {name}: {_escaped(value)}" for name, value in facts.items()),
        "\n".join(f"- {_escaped(line)}" for line in lines),
        _grid(*table(comparison)),
    ]
    if comparison["points"]:
        parts += ["## All points", _grid(*points_table(comparison))]
    if (kinds := _kinds(comparison)).rows:
        rows = [[kind, *(f"{share} ({counts})" for share, counts in cells)] for kind, cells in kinds.rows]
        parts += ["## What was lost, by kind of instruction", _grid(["Kind", *map(method_label, kinds.methods)], rows)]
    return "\n\n".join(parts) + "\n"


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in [columns, ["---"] * len(columns), *rows])


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
