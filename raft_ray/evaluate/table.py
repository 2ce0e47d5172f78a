"""The evaluation as a table for the terminal: a row a method.

Knows nothing about how the numbers were made: it reads the `methods` part of `eval.json`.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from raft_ray.printable import printable

_NONE = "-"


def summary_table(evaluation: dict[str, Any]) -> Table:
    """`Method | domain accuracy | drift | IFEval strict/loose | MMLU | open questions | words | weight distance`.

    Args:
        evaluation: the content of `eval.json`, or its `methods` part. IFEval's strict score, MMLU, open questions and
            the words carry their share of the base's in brackets (retention). The run's main method is bold; what was
            not measured is `-`, and MMLU and open questions have no column if no method has them.
    """
    methods: dict[str, dict[str, Any]] = evaluation.get("methods", evaluation)
    base = methods.get("base", {})
    table = Table()
    table.add_column("Method")
    # One column a number of examples in the prompt.
    shots = list(dict.fromkeys(name for method in methods.values() for name in method.get("mmlu") or {}))
    columns = ["Domain accuracy", "Drift (KL)", "IFEval strict / loose", *(f"MMLU {name}" for name in shots)]
    opened = any(method.get("open") for method in methods.values())
    if opened:
        columns.append("Open (judged)")
    for name in (*columns, "Words (general)", "Weight distance"):
        table.add_column(name, justify="right")
    for name, method in methods.items():
        is_base = name == "base"
        table.add_row(
            Text(printable(name), style="bold" if name == evaluation.get("main") else ""),
            _percent(_value(method, "domain", "accuracy")),
            _number(_value(method, "drift", "kl"), ".4f"),
            _ifeval(method, None if is_base else base),
            *(_mmlu(method, None if is_base else base, name) for name in shots),
            *([_open(method, None if is_base else base)] if opened else []),
            _words(method, None if is_base else base),
            _number(_value(method, "weight_distance", "total"), ".4f"),
        )
    return table


def _ifeval(method: dict[str, Any], base: dict[str, Any] | None) -> str:
    strict = _value(method, "ifeval", "prompt_strict")
    if strict is None:
        return _NONE
    return f"{_percent(strict)} / {_percent(_value(method, 'ifeval', 'prompt_loose'))}" + _retention(
        strict, _value(base, "ifeval", "prompt_strict")
    )


def _mmlu(method: dict[str, Any], base: dict[str, Any] | None, shots: str) -> str:
    accuracy, own = (_value((one or {}).get("mmlu"), shots, "accuracy") for one in (method, base))
    return _percent(accuracy) + _retention(accuracy, own)


def _open(method: dict[str, Any], base: dict[str, Any] | None) -> str:
    score = _value(method, "open", "score")
    return _percent(score) + _retention(score, _value(base, "open", "score"))


def _words(method: dict[str, Any], base: dict[str, Any] | None) -> str:
    words = _value(method, "length", "words_mean")
    return _number(words, ".0f") + _retention(words, _value(base, "length", "words_mean"))


def _retention(value: float | None, base: float | None) -> str:
    """The share of the base's value, where there is one."""
    return f" ({value / base:.0%})" if value is not None and base else ""


def _value(method: dict[str, Any] | None, part: str, name: str) -> float | None:
    return ((method or {}).get(part) or {}).get(name)


def _percent(value: float | None) -> str:
    return _number(None if value is None else 100 * value, ".1f")


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
