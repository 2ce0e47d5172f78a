"""What several comparisons say together: each method's averages over their domains, and a chart of every point.

    python benchmarks/domains.py RUN [RUN ...] [--chart OUT.png]

A RUN is the folder of a `raft-ray compare`, or its `compare.json`. Methods stand at the point chosen for them on
validation questions. Ratios to SFT and to the base are taken in each domain and then averaged, so that no domain counts
for more because its questions are easier; differences have the interval that the domains' own make together. Only
methods that every domain has are averaged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from raft_ray.compare.front import ParetoPoint, gain_at_loss, pareto_front, points_by_method
from raft_ray.evaluate.statistics import Estimate, average
from raft_ray.report.words import method_label

Comparison = dict[str, Any]
REFERENCE = "sft"
COLUMNS = (
    "method",
    "domain accuracy",
    "of SFT's",
    "points on SFT",
    "drift, nats per token",
    "of SFT's",
    "IFEval",
    "of the base's",
    "points on the base",
    "words, of the base's",
)


def averages(domains: dict[str, Comparison]) -> list[list[str]]:
    """A row of cells for each method, as `COLUMNS`."""
    found = [comparison["methods"] for comparison in domains.values()]
    names = [name for name in found[0] if all(name in methods for methods in found)]
    rows = []
    for name in names:
        accuracy, drift, ifeval, words = (_values(found, name, key) for key in ("domain", "drift", "ifeval", "words"))
        cells = [f"{mean(accuracy):.1%}", _ratio(accuracy, _values(found, REFERENCE, "domain"))]
        cells += [_difference(found, name, "domain", "against")]
        cells += [f"{mean(drift):.3f}", _ratio(drift, _values(found, REFERENCE, "drift"))]
        cells += [f"{mean(ifeval):.1%}", _ratio(ifeval, _values(found, "base", "ifeval"))]
        cells += [_difference(found, name, "ifeval", "on_base")]
        rows.append([method_label(name), *cells, _ratio(words, _values(found, "base", "words"))])
    return rows


def aims(domains: dict[str, Comparison]) -> list[str]:
    """In each domain and on average: what RAFT and SFT reach with at most half the drift of SFT's best point, and RAFT
    at the drift of each of OPD's."""
    lines, reached = [], []
    for domain, comparison in domains.items():
        places = _places(comparison)
        best = max(places[REFERENCE].values(), key=lambda place: place.gain)
        raft, sft = (gain_at_loss(places[name], best.loss / 2) for name in ("raft", REFERENCE))
        reached.append((best.gain, raft or 0.0))
        level = [
            f"{'none' if ours is None else f'{ours:.1%}'} to {place.gain:.1%} at {place.loss:.3f}"
            for place in places.get("opd", {}).values()
            for ours in [gain_at_loss(places["raft"], place.loss)]
        ]
        lines.append(
            f"{domain}: SFT's best point {best.gain:.1%} at {best.loss:.3f}; with at most half of that drift RAFT "
            f"{'none' if raft is None else f'{raft:.1%}'}, SFT {'none' if sft is None else f'{sft:.1%}'}; "
            f"RAFT to OPD at its drifts: {', '.join(level) or 'no OPD'}"
        )
    best, raft = (mean(values) for values in zip(*reached, strict=True))
    lines.append(f"average: SFT's best points {best:.1%}; RAFT with at most half of their drift {raft:.1%} (none as 0)")
    return lines


def _values(found: list[dict[str, Any]], name: str, key: str) -> list[float]:
    results = [methods[name] for methods in found]
    return [float((result["scores"].get(key) or result[key])["mean"]) for result in results]


def _ratio(values: list[float], others: list[float]) -> str:
    """The mean of the ratios; none where a rival has 0, as the base's drift."""
    if not all(others):
        return ""
    return f"{mean(value / other for value, other in zip(values, others, strict=True)):.0%}"


def _difference(found: list[dict[str, Any]], name: str, score: str, rival: str) -> str:
    """The mean difference to a rival in points; blank for the rival itself."""
    tests = [methods[name]["scores"][score][rival] for methods in found]
    if not all(tests):
        return ""
    # IFEval's prompts are the same everywhere.
    one = average([Estimate(**test["difference"]) for test in tests], independent=score == "domain")
    points = f"{100 * one.mean:+.1f}"
    if one.low is None or one.high is None:
        return points
    return f"{points} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _places(comparison: Comparison) -> dict[str, dict[str, ParetoPoint]]:
    """Where each method's points stand in accuracy and drift."""
    return points_by_method(_every_point(comparison))


def _instructions(comparison: Comparison) -> dict[str, dict[str, ParetoPoint]]:
    """Where they stand in accuracy and in the share of the base's IFEval that is lost; nowhere if it was not taken."""
    base = comparison["methods"]["base"]["scores"].get("ifeval")
    found: dict[str, dict[str, ParetoPoint]] = {}
    for one in _every_point(comparison) if base else []:
        scores = one["scores"]
        place = ParetoPoint(scores["domain"]["mean"], 1 - scores["ifeval"]["mean"] / base["mean"])
        found.setdefault(one["method"], {})[one["point"]] = place
    return found


def _every_point(comparison: Comparison) -> list[dict[str, Any]]:
    """A comparison without a grid has one point per method."""
    methods = comparison["methods"].items()
    return comparison["points"] or [{"method": name, "point": "", **one} for name, one in methods]


LOSSES = {"drift, nats per token": _places, "IFEval lost, share of the base's": _instructions}
"""What accuracy is drawn against, and where methods stand then."""


def chart(domains: dict[str, Comparison], path: Path) -> None:
    """A column for each domain: every point's accuracy against its drift and against what is lost of IFEval, those
    chosen filled, the fronts dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7, 4.2 * len(domains)), 7.6), layout="constrained")
    names = list(dict.fromkeys(name for comparison in domains.values() for name in _places(comparison)))
    panels = figure.subplots(len(LOSSES), len(domains), squeeze=False)
    for row, (axis, places) in zip(panels, LOSSES.items(), strict=True):
        row[0].set_ylabel("domain accuracy")
        for panel, (domain, comparison) in zip(row, domains.items(), strict=True):
            panel.set(title=domain, xlabel=axis, ylim=(0, 1))
            _draw(panel, places(comparison), comparison["chosen"], names)
    handles = [panels[0][0].plot([], [], _mark(i), label=method_label(name))[0] for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def _draw(panel: Any, places: dict[str, dict[str, ParetoPoint]], chosen: dict[str, str], names: list[str]) -> None:
    every = {}
    for name, points in places.items():
        for point, place in points.items():
            filled = chosen.get(name, point) == point
            panel.plot(place.loss, place.gain, _mark(names.index(name)), fillstyle="full" if filled else "none")
            every[f"{name}/{point}"] = place
    front = [every[key] for key in pareto_front(every)]
    panel.plot([place.loss for place in front], [place.gain for place in front], "--", color="gray", linewidth=1)
    panel.grid(alpha=0.3)


def _mark(number: int) -> str:
    """A method's color and form; ten colors are not enough for all."""
    return f"C{number % 10}{'os^'[number // 10]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--chart", type=Path)
    arguments = parser.parse_args()
    domains = {}
    for run in arguments.runs:
        domains[run.stem] = json.loads((run / "compare.json" if run.is_dir() else run).read_text(encoding="utf-8"))
    for row in [list(COLUMNS), ["---"] + ["---:"] * (len(COLUMNS) - 1), *averages(domains)]:
        print(f"| {' | '.join(row)} |")
    print()
    print("\n".join(f"- {line}" for line in aims(domains)))
    if arguments.chart:
        chart(domains, arguments.chart)


if __name__ == "__main__":
    main()
