"""The comparison in plain words: what each method gained and kept, and whether RAFT kept its promise on this data.

Says no more than the numbers hold: a difference counts only where the paired test finds it, and what was not measured
is named as such.
"""

from __future__ import annotations

from typing import Any

from raft_ray.compare.front import ParetoPoint, dominated_by, gain_at_loss, points_by_method
from raft_ray.evaluate.statistics import describe_retention
from raft_ray.report.verdict import BASE, describe_drift, drift_sign, sign
from raft_ray.report.words import format_number, format_p, format_percent, method_label

OPD = "opd"


def verdict(comparison: dict[str, Any], failed: dict[str, str] | None = None) -> list[str]:
    """Sentences: the summary, the grid's points, a line per method, what failed (`{method: reason}`)."""
    lines = [summary(comparison), *frontier(comparison)]
    lines += [_line(name, comparison) for name in comparison["methods"] if name != BASE]
    lines += [f"{method_label(name)} failed: {reason}" for name, reason in (failed or {}).items()]
    return lines


def score_label(score: str, ifeval: str = "IFEval", open_questions: str = "Open questions (judged)") -> str:
    """What a score is called, by its key in `compare.json`."""
    labels = {"domain": "Domain accuracy", "ifeval": ifeval, "open": open_questions}
    return labels.get(score, score.replace("mmlu", "MMLU"))


def summary(comparison: dict[str, Any]) -> str:
    """Whether the main method reached at least the reference's domain accuracy while staying closer to the base."""
    methods, reference, main = comparison["methods"], comparison["reference"], comparison["main"]
    name, other = method_label(main), method_label(reference)
    if main == reference:
        return f"{name} is what this comparison is about, and what its other methods are tested against."
    if main not in methods or reference not in methods:
        missing = name if main not in methods else other
        return f"Nothing can be said of {name}'s promise: {missing} was not evaluated."
    domain = methods[main]["scores"].get("domain") or {}
    against, moved = domain.get("against"), _moved(methods[main], methods[reference])
    if against is None or moved is None:
        what = "domain accuracy" if against is None else "drift"
        return f"Nothing can be said of {name}'s promise: {what} was not measured for it and {other}."
    if domain["on_base"] and _sign(domain["on_base"]) <= 0:
        return _unlearned(name, other, domain, methods[reference]["scores"]["domain"])
    learned = _sign(against)
    accuracy = {1: f"more accurate than {other}", 0: f"as accurate as {other} within chance"}.get(
        learned, f"less accurate than {other}"
    )
    drift = {-1: "with less drift", 0: "with about the same drift", 1: "with more drift"}[moved]
    if moved >= 0:
        return f"{name} did not keep its promise on this data: {accuracy}, {drift}."
    if learned < 0:
        return f"{name} kept half of its promise on this data: {accuracy}, though {drift}."
    better = {name for name in methods[main]["dominated_by"] or [] if name != BASE}
    if not better:
        return f"{name} kept its promise on this data: {accuracy}, {drift}."
    rivals = " and ".join(sorted(map(method_label, better)))
    return f"{name} kept its promise against {other} ({accuracy}, {drift}), but {rivals} did at least as well in both."


def _unlearned(name: str, other: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Of a method that is not better than the base: to be as accurate as the reference says nothing then."""
    compared = "less than" if _sign(ours["on_base"]) < 0 else "within chance of"
    rival = f"{other} did" if _sign(theirs["on_base"]) > 0 else f"nor did {other}"
    right, base, reached = (format_percent(share) for share in (ours["mean"], ours["base"], theirs["mean"]))
    return (
        f"{name} did not learn the domain as far as these questions show "
        f"({right} right, {compared} the base's {base}); {rival} ({reached})."
    )


def frontier(comparison: dict[str, Any]) -> list[str]:
    """What all points of the grid say: the main method at half of the drift of the reference's best point, who beats
    its chosen point, and how it stands at OPD's drifts.

    Empty without a grid, or where it was not evaluated.
    """
    points, main = points_by_method(comparison["points"]), comparison["main"]
    ours, name = points.get(main), method_label(main)
    if not ours:
        return []
    lines = []
    if main != comparison["reference"] and (rivals := points.get(comparison["reference"])):
        other = method_label(comparison["reference"])
        best, point = max(rivals.items(), key=lambda entry: entry[1].gain)
        lines.append(
            f"With at most half the drift of {other}'s best point ({best}: {_at(point)}): "
            f"{_reached(name, ours, point.loss / 2)}, {_reached(other, rivals, point.loss / 2)}."
        )
    others = {
        f"{method_label(method)} at {label} ({_at(point)})": point
        for method, found in points.items()
        if method not in (main, BASE)
        for label, point in found.items()
    }
    chosen = ours.get(comparison["chosen"].get(main, next(iter(ours))))
    if chosen and (beaten_by := dominated_by(name, {name: chosen, **others})):
        lines.append(
            f"{' and '.join(beaten_by)} {'is' if len(beaten_by) == 1 else 'are'} at least as accurate as {name}'s "
            f"chosen point ({_at(chosen)}), with no more drift."
        )
    if main != OPD and (rivals := points.get(OPD)):
        lines.append(_at_equal_drift(name, ours, method_label(OPD), rivals))
    return lines


def _at_equal_drift(name: str, ours: dict[str, ParetoPoint], other: str, rivals: dict[str, ParetoPoint]) -> str:
    """At how many of the rival's points a method is more accurate with no more drift; where it drifts further
    everywhere, nothing can be said."""
    reached_at = [(gain_at_loss(ours, point.loss), point.gain) for point in rivals.values()]
    compared = [(reached, gain) for reached, gain in reached_at if reached is not None]
    if not compared:
        return f"Nothing can be said of {name} at {other}'s drifts: it has no point that drifts as little."
    won = sum(reached > gain for reached, gain in compared)
    beyond = len(rivals) - len(compared)
    rest = f"; {beyond} more {'drifts' if beyond == 1 else 'drift'} less than any of {name}'s" if beyond else ""
    return f"At the drift of {other}'s points {name} is more accurate in {won} of {len(compared)}{rest}."


def _at(point: ParetoPoint) -> str:
    return f"{format_percent(point.gain)}, drift {format_number(point.loss, 2)}"


def _reached(name: str, points: dict[str, ParetoPoint], loss: float) -> str:
    """What a method reaches with no more drift than `loss`, at its best point there."""
    gain = gain_at_loss(points, loss)
    return f"{name} drifts further everywhere" if gain is None else f"{name} reaches {format_percent(gain)}"


def _line(name: str, comparison: dict[str, Any]) -> str:
    """`RAFT: domain accuracy 41% (+25 points on the base; ...), keeps 97% of IFEval, ...`."""
    result, reference = comparison["methods"][name], comparison["reference"]
    parts = [_domain(result["scores"].get("domain"), method_label(reference))]
    for score, values in result["scores"].items():
        if score != "domain" and values and values["base"] is not None:
            kept = values["retention"]
            label = score_label(score, "IFEval (prompt-strict)", "open questions (judged)")
            none = f"{label} {format_percent(values['mean'])}, of which the base had none"
            chance = ", a difference within chance" if kept != 1 and not _sign(values["on_base"]) else ""
            parts.append(none if kept is None else f"keeps {describe_retention(values)} of {label}{chance}")
    if result["drift"]:
        rival = (comparison["methods"].get(reference) or {}).get("drift") if name != reference else None
        other = rival["mean"] if rival else None
        parts.append(describe_drift(result["drift"]["mean"], other, method_label(reference)))
    seeds = f" ({result['seeds']} seeds)" if result["seeds"] > 1 else ""
    point = comparison["chosen"].get(name)
    at = f" at {point}, chosen on {comparison['validation_questions']} other questions" if point else ""
    return f"{method_label(name)}{at}{seeds}: {'; '.join(parts)}."


def _domain(domain: dict[str, Any] | None, reference: str) -> str:
    if not domain:
        return "domain accuracy not measured"
    text = f"domain accuracy {format_percent(domain['mean'])}"
    if domain["low"] is not None:
        text += f" [{format_percent(domain['low'])} to {format_percent(domain['high'])}]"
    for key, rival in (("on_base", "the base"), ("against", reference)):
        if test := domain[key]:
            chance = "" if _sign(test) else ", within chance"
            gap = f"{100 * test['difference']['mean']:+.1f} points"
            text += f", {gap} on {rival} ({format_p(test['p'])}{chance})"
    return text


def _sign(test: dict[str, Any]) -> int:
    return sign(test["difference"]["mean"], test["p"])


def _moved(result: dict[str, Any], other: dict[str, Any]) -> int | None:
    return drift_sign(*((one["drift"] or {}).get("mean") for one in (result, other)))
