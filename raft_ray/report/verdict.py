"""The verdict on a run in plain words, computed from eval.json and nothing else.

It says what the main method won and what it lost, and never more than the numbers hold: two accuracies count as
different only if a paired exact test (McNemar) over the same questions finds them so, and what was not measured
is named as such. `raft_ray.compare.verdict` judges by the same rules (`sign`, `drift_sign`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from raft_ray.evaluate.statistics import describe_retention, mcnemar
from raft_ray.report.files import Record
from raft_ray.report.words import format_factor, format_number, format_p, format_percent, method_label

SIGNIFICANT = 0.05
SAME_DRIFT = 1.25
"""Drifts within this factor of each other are called about the same."""

BASE = "base"


@dataclass(frozen=True)
class Claim:
    """One sentence of the verdict; `tone` is `good`, `bad` or `even` from the main method's point of view."""

    text: str
    tone: str


@dataclass(frozen=True)
class Verdict:
    headline: str
    claims: list[Claim]
    missing: list[str]


def sign(difference: float, p: float) -> int:
    """1 or -1 for a significant difference, else 0."""
    return 0 if p >= SIGNIFICANT or difference == 0 else (1 if difference > 0 else -1)


def drift_sign(first: float | None, second: float | None) -> int | None:
    """1 if the first drifted further, -1 if less far, 0 within `SAME_DRIFT`; none where one was not measured."""
    if first is None or second is None:
        return None
    first, second = max(0.0, first), max(0.0, second)
    if first > second * SAME_DRIFT:
        return 1
    return -1 if second > first * SAME_DRIFT else 0


def describe_drift(drift: float, other: float | None, name: str) -> str:
    """`drift 0.061 nats per token, 7.3 times less than SFT`: beside the drift of another method, where there is one."""
    text, moved = f"drift {format_number(drift, 2)} nats per token", drift_sign(drift, other)
    if other is None or moved is None:
        return text
    if moved == 0:
        return f"{text}, about the same as {name}"
    factor = f"{format_factor(max(drift, other) / min(drift, other))} " if min(drift, other) > 0 else ""
    return f"{text}, {factor}{'less' if moved < 0 else 'more'} than {name}"


PARTS = {
    "domain": "domain accuracy",
    "drift": "drift",
    "length": "length of general answers",
    "ifeval": "IFEval",
    "weight_distance": "weight distance",
}


def verdict(main: str, methods: dict[str, Record]) -> Verdict:
    """What `methods` (eval.json, in report order) says about `main`."""
    if main not in methods:
        return Verdict(f"{method_label(main)} was not evaluated.", [], [])
    others = [name for name in methods if name != main]
    claims = [make(main, others, methods) for make in (_domain, _drift, _front, _length, _ifeval)]
    return Verdict(
        _headline(main, others, methods),
        [claim for claim in claims if claim],
        [text for part, text in PARTS.items() if methods[main].get(part) is None],
    )


def better_accuracy(a: Record, b: Record) -> tuple[int, float] | None:
    """(sign of a − b if significant else 0, p) of two domain accuracies; None where one was not measured. Over the same
    questions: McNemar's exact test on the questions that only one of them got right. Where the answers are not paired:
    the normal approximation for two proportions."""
    first, second = a.get("domain"), b.get("domain")
    if not first or not second:
        return None
    difference = first["accuracy"] - second["accuracy"]
    right, other = first.get("correct"), second.get("correct")
    if right and other and len(right) == len(other):
        pairs = list(zip(right, other, strict=True))
        p = mcnemar(sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs))
    else:
        n_a, n_b = first.get("n") or 0, second.get("n") or 0
        pooled = (first["accuracy"] * n_a + second["accuracy"] * n_b) / max(1, n_a + n_b)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / max(1, n_a) + 1 / max(1, n_b)))
        p = 2 * (1 - NormalDist().cdf(abs(difference) / spread)) if spread else 1.0
    return sign(difference, p), p


def _value(method: Record, part: str, key: str) -> float | None:
    return method[part][key] if method.get(part) else None


def _rival(others: list[str]) -> str | None:
    """The method that the verdict compares with first: SFT, else any other trained one."""
    trained = [name for name in others if name != BASE]
    return "sft" if "sft" in trained else (trained[0] if trained else None)


def _gained(main: str, methods: dict[str, Record]) -> tuple[int, float] | None:
    """`better_accuracy` of `main` and the base; None where one of the two was not measured, or `main` is the base."""
    return better_accuracy(methods[main], methods[BASE]) if BASE in methods and main != BASE else None


def _moved(main: str, rival: str, methods: dict[str, Record]) -> int | None:
    return drift_sign(_value(methods[main], "drift", "kl"), _value(methods[rival], "drift", "kl"))


def _headline(main: str, others: list[str], methods: dict[str, Record]) -> str:
    name, rival, gained = method_label(main), _rival(others), _gained(main, methods)
    if rival is None:
        if gained is None:
            return f"{name} was evaluated without another method to compare it with."
        ending = {1: "learned the domain", 0: "is not clearly better on the domain", -1: "got worse on the domain"}
        return f"{name} {ending[gained[0]]}, measured against the base model; no other trained method to compare with."
    learned = better_accuracy(methods[main], methods[rival])
    moved = _moved(main, rival, methods)
    parts = []
    if gained is not None and gained[0] <= 0:
        # To have learned as much as another says nothing then.
        learned = (-1, gained[1])
        parts.append("got worse on the domain" if gained[0] else "did not clearly learn the domain")
    elif learned is not None:
        words = {1: "more than", 0: "about as much as", -1: "less than"}
        parts.append(f"learned {words[learned[0]]} {method_label(rival)}")
    if moved is not None:
        words = {1: "drifted further from", 0: "drifted as far from", -1: "stayed closer to"}
        parts.append(f"{words[moved]} the base model")
    if not parts:
        return f"Neither domain accuracy nor drift was measured for {name} and {method_label(rival)}."
    agree = learned is None or moved is None or learned[0] * -moved >= 0
    return f"{name} {(' and ' if agree else ' but ').join(parts)}."


def _domain(main: str, others: list[str], methods: dict[str, Record]) -> Claim | None:
    domain = methods[main].get("domain")
    if not domain:
        return None
    listed = _listed(others, methods, "domain", "accuracy", format_percent)
    asked = format_number(domain.get("n"), 6)
    text = f"Domain accuracy {format_percent(domain['accuracy'])} on {asked} questions{listed}."
    rival, base = _rival(others), _gained(main, methods)
    compared = better_accuracy(methods[main], methods[rival]) if rival else None
    if base is not None and base[0] <= 0:
        text += " No clear gain over the base." if base[0] == 0 else " Worse than the base."
    if compared is not None and rival is not None:
        gap = f"{abs(domain['accuracy'] - methods[rival]['domain']['accuracy']) * 100:.1f} points"
        certainty, other = format_p(compared[1]), method_label(rival)
        text += {
            1: f" {gap} above {other} ({certainty}).",
            0: f" The {gap} between it and {other} are within chance ({certainty}).",
            -1: f" {gap} below {other} ({certainty}).",
        }[compared[0]]
    won = -1 if base is not None and base[0] < 0 else (compared or base or (0, 1.0))[0]
    return Claim(text, _tone(won))


def _drift(main: str, others: list[str], methods: dict[str, Record]) -> Claim | None:
    drift = _value(methods[main], "drift", "kl")
    if drift is None:
        return None
    rival = _rival(others)
    other = _value(methods[rival], "drift", "kl") if rival else None
    text = describe_drift(drift, other, method_label(rival or ""))
    trained = [name for name in others if name != BASE]
    text += _listed(trained, methods, "drift", "kl", lambda value: format_number(value, 2))
    return Claim(f"D{text[1:]}.", _tone(-(drift_sign(drift, other) or 0)))


def _front(main: str, others: list[str], methods: dict[str, Record]) -> Claim | None:
    """Whether another method is at least as good in both accuracy and drift, and better in one."""
    places = {
        name: (m["domain"]["accuracy"], -m["drift"]["kl"])
        for name, m in methods.items()
        if m.get("domain") and m.get("drift")
    }
    own = places.pop(main, None)
    if own is None or not places:
        return None
    above = [n for n, p in places.items() if p[0] >= own[0] and p[1] >= own[1] and p != own]
    if above:
        verb = "reaches" if len(above) == 1 else "reach"
        text = f"{_and(above)} {verb} at least its accuracy with no more drift."
        return Claim(text[0].upper() + text[1:] if above[0] == BASE else text, "bad")
    below = [n for n, p in places.items() if n != BASE and p[0] <= own[0] and p[1] <= own[1] and p != own]
    if below:
        return Claim(f"At least as accurate as {_and(below)}, with no more drift.", "good")
    if places.keys() == {BASE}:
        return None
    return Claim("No other method here is at least as accurate with less drift.", "even")


def _length(main: str, others: list[str], methods: dict[str, Record]) -> Claim | None:
    words, base = (_value(methods.get(name) or {}, "length", "words_mean") for name in (main, BASE))
    if words is None or main == BASE:
        return None
    if not base or base <= 0:
        listed = _listed(others, methods, "length", "words_mean", format_number)
        return Claim(f"Answers to general questions have {format_number(words)} words on average{listed}.", "even")
    kept = words / base
    trained = [name for name in others if name != BASE]
    listed = _listed(trained, methods, "length", "words_mean", lambda value: format_percent(value / base))
    verb = "keep" if kept <= 1 else "grow to"
    tone = "good" if 0.8 <= kept <= 1.25 else ("bad" if kept < 0.5 or kept > 2 else "even")
    return Claim(f"Answers to general questions {verb} {format_percent(kept)} of the base's length{listed}.", tone)


def _ifeval(main: str, others: list[str], methods: dict[str, Record]) -> Claim | None:
    ifeval = methods[main].get("ifeval")
    if not ifeval:
        return None
    share, listed = ifeval["prompt_strict"], _listed(others, methods, "ifeval", "prompt_strict", format_percent)
    text = f"Instructions followed (IFEval, prompt-strict) {format_percent(share)}{listed}."
    test = ifeval.get("on_base")
    if not test:
        return Claim(text, "even")
    won = sign(test["difference"]["mean"], test["p"])
    chance = format_p(test["p"]) if won else f"within chance, {format_p(test['p'])}"
    nothing = ifeval["retention"] is None
    kept = "The base followed none" if nothing else f"It keeps {describe_retention(ifeval)} of the base's"
    samples = f", {ifeval['samples']} answers each" if ifeval["samples"] > 1 else ""
    return Claim(f"{text} {kept} on {ifeval['n']} prompts{samples} ({chance}).", _tone(won))


def _tone(won: float) -> str:
    return "good" if won > 0 else "bad" if won < 0 else "even"


def _called(name: str, base: str = "base") -> str:
    return base if name == BASE else method_label(name)


def _listed(names: list[str], methods: dict[str, Record], part: str, key: str, text: Callable[[float], str]) -> str:
    """` (base 16%, SFT 39%)` for the methods that have the value, or nothing."""
    values = [(name, _value(methods[name], part, key)) for name in names]
    inside = ", ".join(f"{_called(name)} {text(value)}" for name, value in values if value is not None)
    return f" ({inside})" if inside else ""


def _and(names: list[str]) -> str:
    *most, last = [_called(name, "the base") for name in names]
    return f"{', '.join(most)} and {last}" if most else last
