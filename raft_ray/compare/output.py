"""A comparison as files: `compare.json`, `.csv`, `.md` and one self-contained page, `.html`.

Every number carries its interval where it has one. Knows nothing about how anything was measured.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from raft_ray.compare.verdict import verdict
from raft_ray.report.words import about, method_label, short

_NUMBERS = {
    "drift": "Drift (nats a token)",
    "agreement": "Top-1 agreement",
    "words": "Words (general)",
    "weight_distance": "Weight distance",
}


def write_comparison(folder: Path, comparison: dict[str, Any], failed: dict[str, str], facts: dict[str, str]) -> Path:
    """Write all four files into `folder`; returns the path of the page.

    Args:
        failed: reason by training that failed.
        facts: what was compared (model, data, steps), in the order shown.
    """
    lines = verdict(comparison, failed)
    content = {"facts": facts, "verdict": lines, "failed": failed, **comparison}
    texts = {
        "json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False),
        "csv": _csv(comparison),
        "md": _markdown(comparison, lines, facts),
        "html": _html(comparison, lines, facts),
    }
    for kind, text in texts.items():
        (folder / f"compare.{kind}").write_text(text, encoding="utf-8", errors="replace")
    return folder / "compare.html"


def table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of cells for each method."""
    methods = comparison["methods"]
    scores = list(dict.fromkeys(score for result in methods.values() for score in result["scores"]))
    columns = ["Method", "Seeds", *(_label(score) for score in scores), *_NUMBERS.values(), "Front"]
    rows = []
    for name, result in methods.items():
        cells = [method_label(name), str(result["seeds"])]
        cells += [_score_cell(result["scores"][score], name) for score in scores]
        cells += [_number_cell(result[key]) for key in _NUMBERS]
        rows.append([*cells, "yes" if name in comparison["front"] else ""])
    return columns, rows


def _score_cell(score: dict[str, Any] | None, name: str) -> str:
    if score is None:
        return "-"
    text = f"{about(score['mean'])} [{about(score['low'])}, {about(score['high'])}]"
    if name != "base" and score["base"] is not None:
        kept = "base 0" if score["retention"] is None else f"{score['retention']:.0%} of base"
        text += f" ({kept})"
    return text


def _number_cell(number: dict[str, Any] | None) -> str:
    if number is None:
        return "-"
    text = short(number["mean"])
    return text if number["low"] is None else f"{text} [{short(number['low'])}, {short(number['high'])}]"


def _label(score: str) -> str:
    labels = {"domain": "Domain accuracy", "ifeval": "IFEval", "open": "Open questions (judged)"}
    return labels.get(score, score.replace("mmlu", "MMLU"))


def _csv(comparison: dict[str, Any]) -> str:
    """A line a method and measure: easy to filter, and the same columns whatever was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seeds", "measure", "mean", "low", "high", "retention", "difference", "p"])
    for name, result in comparison["methods"].items():
        measures = {**result["scores"], **{key: result[key] for key in _NUMBERS}}
        for measure, value in measures.items():
            if value is None:
                continue
            against = value.get("against") or {}
            gap = against.get("difference", {}).get("mean")
            numbers = [value["mean"], value["low"], value["high"], value.get("retention"), gap, against.get("p")]
            writer.writerow([name, result["seeds"], measure, *numbers])
    return text.getvalue()


def _markdown(comparison: dict[str, Any], lines: list[str], facts: dict[str, str]) -> str:
    columns, rows = table(comparison)
    grid = [columns, ["---"] * len(columns), *rows]
    parts = [
        "# Comparison",
        "\n".join(f"- {name}: {_escaped(value)}" for name, value in facts.items()),
        "\n".join(f"- {_escaped(line)}" for line in lines),
        "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in grid),
    ]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _html(comparison: dict[str, Any], lines: list[str], facts: dict[str, str]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from raft_ray.report.figures import method_css

    environment = Environment(loader=PackageLoader("raft_ray", "."), autoescape=True, undefined=StrictUndefined)
    columns, rows = table(comparison)
    names = list(comparison["methods"])
    return environment.get_template("compare/compare.html.j2").render(
        facts=facts,
        verdict=lines,
        columns=columns,
        rows=[(method_css(name), cells) for name, cells in zip(names, rows, strict=True)],
        charts=_charts(comparison),
    )


def _charts(comparison: dict[str, Any]) -> list[tuple[str, Any]]:
    """Domain accuracy against drift and against what is left of each general score."""
    from raft_ray.report.figures import method_css
    from raft_ray.report.svg import Point, scatter

    methods = comparison["methods"]
    scores = list(dict.fromkeys(score for result in methods.values() for score in result["scores"]))
    axes = [("drift", "drift, nats a token"), *((score, _label(score)) for score in scores if score != "domain")]
    charts = []
    for key, x_label in axes:
        points = []
        for name, result in methods.items():
            domain, value = result["scores"].get("domain"), result[key] if key == "drift" else result["scores"].get(key)
            if domain and value:
                label = method_label(name)
                points.append(
                    Point(label, method_css(name), value["mean"], domain["mean"], domain["low"], domain["high"])
                )
        if points:
            form = short if key == "drift" else about
            title = f"Domain accuracy against {x_label}"
            charts.append((title, scatter(points, label=title, x_label=x_label, x_form=form, y_form=about)))
    return charts
