"""The verdict of a run in plain words, computed from eval.json and nothing else.

It says what the main method won and what it lost, and never more than the numbers hold: two accuracies count as
different only if a paired exact test (McNemar) over the same questions finds them so, and what was not measured
is named as such. Knows nothing about HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from raft_ray.evaluate.statistics import mcnemar
from raft_ray.report.words import about, method_label, short, times

SIGNIFICANT = 0.05
SAME_DRIFT = 1.25
"""Drifts within this factor of each other are called about the same."""

Result = dict[str, Any]


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


def verdict(main: str, methods: dict[str, Result]) -> Verdict:
    """What `methods` (eval.json, in report order) says about `main`."""
    if main not in methods:
        return Verdict(f"{method_label(main)} was not evaluated.", [], [])
    others = [name for name in methods if name != main]
    claims = [_domain(main, others, methods), _drift(main, others, methods), _front(main, others, methods)]
    claims += [_length(main, others, methods), _ifeval(main, others, methods)]
    parts = {
        "domain": "domain accuracy",
        "drift": "drift",
        "length": "length of general answers",
        "ifeval": "IFEval",
        "weight_distance": "weight distance",
    }
    return Verdict(
        headline=_headline(main, others, methods),
        claims=[claim for claim in claims if claim],
        missing=[text for part, text in parts.items() if methods[main].get(part) is None],
    )


def better_accuracy(a: Result, b: Result) -> tuple[int, float] | None:
    """(sign of a − b if significant else 0, p) of two domain accuracies; None where one was not measured.

    Over the same questions: McNemar's exact test on the questions that only one of them got right. Where the
    answers are not paired: the normal approximation for two proportions.
    """
    first, second = a.get("domain"), b.get("domain")
    if not first or not second:
        return None
    difference = first["accuracy"] - second["accuracy"]
    right, other = first.get("correct"), second.get("correct")
    if right and other and len(right) == len(other):
        only_a = sum(x and not y for x, y in zip(right, other, strict=True))
        only_b = sum(y and not x for x, y in zip(right, other, strict=True))
        p = mcnemar(only_a, only_b)
    else:
        n_a, n_b = first.get("n") or 0, second.get("n") or 0
        pooled = (first["accuracy"] * n_a + second["accuracy"] * n_b) / max(1, n_a + n_b)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / max(1, n_a) + 1 / max(1, n_b)))
        p = 2 * (1 - NormalDist().cdf(abs(difference) / spread)) if spread else 1.0
    sign = 0 if p >= SIGNIFICANT or difference == 0 else int(math.copysign(1, difference))
    return sign, p


def _rival(main: str, others: list[str]) -> str | None:
    """The method that the verdict compares with first: SFT, else any other trained one."""
    trained = [name for name in others if name != "base"]
    return "sft" if "sft" in trained else (trained[0] if trained else None)


def _headline(main: str, others: list[str], methods: dict[str, Result]) -> str:
    name, rival = method_label(main), _rival(main, others)
    if rival is None:
        return _headline_alone(main, methods)
    learned = better_accuracy(methods[main], methods[rival])
    moved = _drift_sign(methods[main], methods[rival])
    words = {1: "more than", 0: "about as much as", -1: "less than"}
    parts = []
    gained = _gained(main, methods)
    if gained is not None and gained[0] <= 0:
        # To have learned as much as another says nothing then.
        learned = (-1, gained[1])
        parts.append("got worse on the domain" if gained[0] else "did not clearly learn the domain")
    elif learned is not None:
        parts.append(f"learned {words[learned[0]]} {method_label(rival)}")
    if moved is not None:
        parts.append(
            {1: "drifted further from", 0: "drifted as far from", -1: "stayed closer to"}[moved] + " the base model"
        )
    if not parts:
        return f"Neither domain accuracy nor drift was measured for {name} and {method_label(rival)}."
    agree = learned is None or moved is None or learned[0] * -moved >= 0
    return f"{name} {(' and ' if agree else ' but ').join(parts)}."


def _gained(main: str, methods: dict[str, Result]) -> tuple[int, float] | None:
    """`better_accuracy` of `main` and the base; None where one of the two was not measured, or `main` is the base."""
    return better_accuracy(methods[main], methods["base"]) if "base" in methods and main != "base" else None


def _headline_alone(main: str, methods: dict[str, Result]) -> str:
    name = method_label(main)
    learned = _gained(main, methods)
    if learned is None:
        return f"{name} was evaluated without another method to compare it with."
    ending = {1: "learned the domain", 0: "is not clearly better on the domain", -1: "got worse on the domain"}
    return f"{name} {ending[learned[0]]}, measured against the base model; no other trained method to compare with."


def _drift_sign(a: Result, b: Result) -> int | None:
    """1 if a drifted further than b, -1 if less far, 0 within `SAME_DRIFT`; None where one was not measured."""
    if not a.get("drift") or not b.get("drift"):
        return None
    first, second = max(0.0, a["drift"]["kl"]), max(0.0, b["drift"]["kl"])
    if first > second * SAME_DRIFT:
        return 1
    return -1 if second > first * SAME_DRIFT else 0


def _domain(main: str, others: list[str], methods: dict[str, Result]) -> Claim | None:
    domain = methods[main].get("domain")
    if not domain:
        return None
    listed = _listed(others, methods, lambda m: about(m["domain"]["accuracy"]) if m.get("domain") else None)
    text = f"Domain accuracy {about(domain['accuracy'])} on {short(domain.get('n'), 6)} questions{listed}."
    rival = _rival(main, others)
    compared = better_accuracy(methods[main], methods[rival]) if rival else None
    base = better_accuracy(methods[main], methods["base"]) if "base" in others else None
    if base is not None and base[0] <= 0:
        text += " No clear gain over the base." if base[0] == 0 else " Worse than the base."
    tone = {1: "good", 0: "even", -1: "bad"}[(compared or base or (0, 1.0))[0]]
    if compared is not None and rival is not None:
        gap = f"{abs(domain['accuracy'] - methods[rival]['domain']['accuracy']) * 100:.1f} points"
        certainty = f"p {'< 0.001' if compared[1] < 0.001 else f'= {compared[1]:.2g}'}"
        text += {
            1: f" {gap} above {method_label(rival)} ({certainty}).",
            0: f" The {gap} between it and {method_label(rival)} are within chance ({certainty}).",
            -1: f" {gap} below {method_label(rival)} ({certainty}).",
        }[compared[0]]
    return Claim(text, "bad" if base is not None and base[0] < 0 else tone)


def _drift(main: str, others: list[str], methods: dict[str, Result]) -> Claim | None:
    drift = methods[main].get("drift")
    if not drift:
        return None
    text = f"Drift {short(drift['kl'], 2)} nats a token"
    rival = _rival(main, others)
    sign = _drift_sign(methods[main], methods[rival]) if rival else None
    if rival is not None and sign is not None:
        a, b, name = drift["kl"], methods[rival]["drift"]["kl"], method_label(rival)
        word = "less" if sign < 0 else "more"
        if sign == 0:
            text += f", about the same as {name}"
        elif min(a, b) <= 0:
            text += f", {word} than {name}"
        else:
            text += f", {times(max(a, b) / min(a, b))} {word} than {name}"
    rest = [name for name in others if name != "base"]
    text += _listed(rest, methods, lambda m: short(m["drift"]["kl"], 2) if m.get("drift") else None)
    return Claim(text + ".", {None: "even", 0: "even", -1: "good", 1: "bad"}[sign])


def _front(main: str, others: list[str], methods: dict[str, Result]) -> Claim | None:
    """Whether another method is at least as good in both accuracy and drift, and better in one."""

    def place(name: str) -> tuple[float, float] | None:
        m = methods[name]
        return (m["domain"]["accuracy"], -m["drift"]["kl"]) if m.get("domain") and m.get("drift") else None

    own = place(main)
    rivals = {name: place(name) for name in others}
    if own is None or not any(rivals.values()):
        return None
    above = [n for n, p in rivals.items() if p and p[0] >= own[0] and p[1] >= own[1] and p != own]
    if above:
        verb = "reaches" if len(above) == 1 else "reach"
        return Claim(f"{_and(above)} {verb} at least its accuracy with no more drift.", "bad")
    below = [n for n, p in rivals.items() if p and n != "base" and p[0] <= own[0] and p[1] <= own[1] and p != own]
    if below:
        return Claim(f"At least as accurate as {_and(below)}, with no more drift.", "good")
    if not any(p for name, p in rivals.items() if name != "base"):
        return None
    return Claim("No other method here is at least as accurate with less drift.", "even")


def _length(main: str, others: list[str], methods: dict[str, Result]) -> Claim | None:
    length, base = methods[main].get("length"), (methods.get("base") or {}).get("length")
    if not length or main == "base":
        return None
    if not base or base["words_mean"] <= 0:
        listed = _listed(others, methods, lambda m: short(m["length"]["words_mean"]) if m.get("length") else None)
        return Claim(
            f"Answers to general questions have {short(length['words_mean'])} words on average{listed}.", "even"
        )

    def kept(m: Result) -> float | None:
        return m["length"]["words_mean"] / base["words_mean"] if m.get("length") else None

    own = kept(methods[main])
    assert own is not None
    rest = [name for name in others if name != "base"]
    verb = "keep" if own <= 1 else "grow to"
    listed = _listed(rest, methods, lambda m: about(kept(m)) if m.get("length") else None)
    tone = "good" if 0.8 <= own <= 1.25 else ("bad" if own < 0.5 or own > 2 else "even")
    return Claim(f"Answers to general questions {verb} {about(own)} of the base's length{listed}.", tone)


def _ifeval(main: str, others: list[str], methods: dict[str, Result]) -> Claim | None:
    ifeval = methods[main].get("ifeval")
    if not ifeval:
        return None
    listed = _listed(others, methods, lambda m: about(m["ifeval"]["prompt_strict"]) if m.get("ifeval") else None)
    text = f"Instructions followed (IFEval, prompt-strict) {about(ifeval['prompt_strict'])}{listed}."
    base = (methods.get("base") or {}).get("ifeval")
    if not base or main == "base":
        return Claim(text, "even")
    n = min(ifeval.get("n") or 0, base.get("n") or 0)
    spread = math.sqrt(base["prompt_strict"] * (1 - base["prompt_strict"]) * 2 / n) if n else 0.0
    difference = ifeval["prompt_strict"] - base["prompt_strict"]
    if abs(difference) <= 1.96 * spread:
        return Claim(text + f" Within chance of the base on {n} prompts.", "even")
    return Claim(text, "good" if difference > 0 else "bad")


def _listed(names: list[str], methods: dict[str, Result], value: Any) -> str:
    """` (base 16%, SFT 39%)` for the methods that have the value, or nothing."""
    texts = [(name, value(methods[name])) for name in names]
    inside = ", ".join(f"{'base' if name == 'base' else method_label(name)} {text}" for name, text in texts if text)
    return f" ({inside})" if inside else ""


def _and(names: list[str]) -> str:
    labels = ["the base" if name == "base" else method_label(name) for name in names]
    text = labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]
    return text[0].upper() + text[1:] if labels[0] == "the base" else text
