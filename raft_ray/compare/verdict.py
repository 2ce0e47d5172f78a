"""The comparison in plain words: what each method gained and kept, and whether RAFT kept its promise on this data.

Says no more than the numbers hold: a difference counts only where the paired test finds it, and what was not measured
is named as such.
"""

from __future__ import annotations

from typing import Any

from raft_ray.compare.front import Place, dominated_by, gain_at_loss, places_of
from raft_ray.report.verdict import SAME_DRIFT, SIGNIFICANT
from raft_ray.report.words import about, method_label, short, times

BASE = "base"
OPD = "opd"


def verdict(comparison: dict[str, Any], failed: dict[str, str] | None = None) -> list[str]:
    """Sentences: the promise, the grid's points, a line a method, what failed (`{method: reason}`)."""
    methods = comparison["methods"]
    lines = [promise(comparison), *frontier(comparison)]
    lines += [_line(name, comparison) for name in methods if name != BASE]
    lines += [f"{method_label(name)} failed: {reason}" for name, reason in (failed or {}).items()]
    return lines


def promise(comparison: dict[str, Any]) -> str:
    """Whether the main method reached at least the reference's domain accuracy while staying closer to the base."""
    methods, reference, main = comparison["methods"], comparison["reference"], comparison["main"]
    name, other = method_label(main), method_label(reference)
    if main == reference:
        return f"{name} is what this comparison is about, and what its other methods are tested against."
    if main not in methods or reference not in methods:
        missing = name if main not in methods else other
        return f"Nothing can be said of {name}'s promise: {missing} was not evaluated."
    against = (methods[main]["scores"].get("domain") or {}).get("against")
    moved = _moved(methods[main]["drift"], methods[reference]["drift"])
    if against is None or moved is None:
        what = "domain accuracy" if against is None else "drift"
        return f"Nothing can be said of {name}'s promise: {what} was not measured for it and {other}."
    if (on_base := methods[main]["scores"]["domain"]["on_base"]) and _sign(on_base) <= 0:
        return _unlearned(name, other, methods[main], methods[reference])
    learned = _sign(against)
    accuracy = {1: f"more accurate than {other}", 0: f"as accurate as {other} within chance", -1: "less accurate"}[
        learned
    ]
    drift = {-1: "with less drift", 0: "with about the same drift", 1: "with more drift"}[moved]
    if learned < 0:
        accuracy += f" than {other}"
    better = {name for name in methods[main]["dominated_by"] or [] if name != BASE}
    if learned >= 0 and moved < 0 and not better:
        return f"{name} kept its promise on this data: {accuracy}, {drift}."
    if learned >= 0 and moved < 0:
        rivals = " and ".join(sorted(map(method_label, better)))
        return (
            f"{name} kept its promise against {other} ({accuracy}, {drift}), but {rivals} did at least as well in both."
        )
    if learned < 0 and moved < 0:
        return f"{name} kept half of its promise on this data: {accuracy}, though {drift}."
    return f"{name} did not keep its promise on this data: {accuracy}, {drift}."


def _unlearned(name: str, other: str, main: dict[str, Any], reference: dict[str, Any]) -> str:
    """Of a method that is not better than the base: to be as accurate as the reference says nothing then."""
    ours, theirs = main["scores"]["domain"], reference["scores"]["domain"]
    compared = "less than" if _sign(ours["on_base"]) < 0 else "within chance of"
    rival = f"{other} did" if _sign(theirs["on_base"]) > 0 else f"nor did {other}"
    return (
        f"{name} did not learn the domain as far as these questions show ({about(ours['mean'])} right, {compared} the "
        f"base's {about(ours['base'])}); {rival} ({about(theirs['mean'])})."
    )


def frontier(comparison: dict[str, Any]) -> list[str]:
    """What all points of the grid say: the main method at half of the drift of the reference's best point, who beats
    its chosen point, and how it stands at OPD's drifts.

    Empty without a grid, or where it was not evaluated.
    """
    places, main = places_of(comparison["points"]), comparison["main"]
    ours, name = places.get(main), method_label(main)
    if not ours:
        return []
    lines = []
    if main != comparison["reference"] and (rivals := places.get(comparison["reference"])):
        other = method_label(comparison["reference"])
        best, place = max(rivals.items(), key=lambda entry: entry[1].gain)
        lines.append(
            f"With at most half the drift of {other}'s best point ({best}: {_at(place)}): "
            f"{_reached(name, ours, place.loss / 2)}, {_reached(other, rivals, place.loss / 2)}."
        )
    others = {
        f"{method_label(method)} at {point} ({_at(place)})": place
        for method, points in places.items()
        if method not in (main, BASE)
        for point, place in points.items()
    }
    chosen = ours.get(comparison["chosen"].get(main, next(iter(ours))))
    if chosen and (beaten_by := dominated_by(name, {name: chosen, **others})):
        lines.append(
            f"{' and '.join(beaten_by)} {'is' if len(beaten_by) == 1 else 'are'} at least as accurate as {name}'s "
            f"chosen point ({_at(chosen)}), with no more drift."
        )
    if main != OPD and (rivals := places.get(OPD)):
        lines.append(_at_equal_drift(name, ours, method_label(OPD), rivals))
    return lines


def _at_equal_drift(name: str, ours: dict[str, Place], other: str, rivals: dict[str, Place]) -> str:
    """At how many of the rival's points a method is more accurate with no more drift; where it drifts further
    everywhere, nothing can be said."""
    reached_at = [(gain_at_loss(ours, place.loss), place.gain) for place in rivals.values()]
    compared = [(reached, gain) for reached, gain in reached_at if reached is not None]
    if not compared:
        return f"Nothing can be said of {name} at {other}'s drifts: it has no point that drifts as little."
    won = sum(reached > gain for reached, gain in compared)
    beyond = len(rivals) - len(compared)
    rest = f"; {beyond} more {'drifts' if beyond == 1 else 'drift'} less than any of {name}'s" if beyond else ""
    return f"At the drift of {other}'s points {name} is more accurate in {won} of {len(compared)}{rest}."


def _at(place: Place) -> str:
    return f"{about(place.gain)}, drift {short(place.loss, 2)}"


def _reached(name: str, places: dict[str, Place], loss: float) -> str:
    """What a method reaches with no more drift than `loss`, at its best point there."""
    gain = gain_at_loss(places, loss)
    return f"{name} drifts further everywhere" if gain is None else f"{name} reaches {about(gain)}"


def _line(name: str, comparison: dict[str, Any]) -> str:
    """`RAFT: domain accuracy 41% (+25 points on the base; ...), keeps 97% of IFEval, ...`."""
    methods, reference = comparison["methods"], comparison["reference"]
    result = methods[name]
    parts = [_domain(name, comparison)]
    for score, values in result["scores"].items():
        if score != "domain" and values and values["base"] is not None:
            kept, label = values["retention"], _score_label(score)
            none = f"{label} {about(values['mean'])}, of which the base had none"
            chance = ", a difference within chance" if kept != 1 and not _sign(values["on_base"]) else ""
            parts.append(none if kept is None else f"keeps {kept:.0%} of {label}{chance}")
    if result["drift"]:
        text = f"drift {short(result['drift']['mean'], 2)} nats a token"
        rival = (methods.get(reference) or {}).get("drift")
        if name != reference and rival and min(rival["mean"], result["drift"]["mean"]) > 0:
            sign = _moved(result["drift"], rival)
            ratio = result["drift"]["mean"] / rival["mean"]
            text += {
                0: f", about {method_label(reference)}'s",
                -1: f", {times(1 / ratio)} less than {method_label(reference)}",
                1: f", {times(ratio)} more than {method_label(reference)}",
            }[sign or 0]
        parts.append(text)
    seeds = f" ({result['seeds']} seeds)" if result["seeds"] > 1 else ""
    point = comparison["chosen"].get(name)
    at = f" at {point}, chosen on {comparison['validation_questions']} other questions" if point else ""
    return f"{method_label(name)}{at}{seeds}: {'; '.join(part for part in parts if part)}."


def _domain(name: str, comparison: dict[str, Any]) -> str:
    domain = comparison["methods"][name]["scores"].get("domain")
    if not domain:
        return "domain accuracy not measured"
    text = f"domain accuracy {about(domain['mean'])}"
    if domain["low"] is not None:
        text += f" [{about(domain['low'])} to {about(domain['high'])}]"
    for key, rival in (("on_base", "the base"), ("against", method_label(comparison["reference"]))):
        if test := domain[key]:
            chance = "" if _sign(test) else ", within chance"
            certainty = "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.2g}"
            text += f", {_points(test['difference']['mean'])} on {rival} ({certainty}{chance})"
    return text


def _sign(against: dict[str, Any]) -> int:
    """1 or -1 for a significant difference, else 0."""
    gap = against["difference"]["mean"]
    return 0 if against["p"] >= SIGNIFICANT or gap == 0 else (1 if gap > 0 else -1)


def _moved(drift: dict[str, Any] | None, other: dict[str, Any] | None) -> int | None:
    """1 if the first drifted further, -1 if less far, 0 within `SAME_DRIFT`; none where one was not measured."""
    if not drift or not other:
        return None
    first, second = max(0.0, drift["mean"]), max(0.0, other["mean"])
    if first > second * SAME_DRIFT:
        return 1
    return -1 if second > first * SAME_DRIFT else 0


def _score_label(score: str) -> str:
    return {"ifeval": "IFEval (prompt-strict)", "open": "open questions (judged)"}.get(
        score, score.replace("mmlu", "MMLU")
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"
