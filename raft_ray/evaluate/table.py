"""The evaluation as a table for the terminal, a row per method, read off the `methods` part of `eval.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from raft_ray.evaluate.statistics import describe_retention
from raft_ray.printable import printable

Block = dict[str, Any]


@dataclass(frozen=True)
class _Column:
    title: str
    paths: tuple[str, ...]
    """Keys of the numbers in a cell; where the first is missing, the cell is `-`."""
    form: str
    scale: float = 1.0
    retained: bool = False
    """Its share of the base's stands behind it in brackets, with its interval where that was taken."""

    def cell(self, method: Block, base: Block | None) -> str:
        """`base` is none for the base itself."""
        values = [_value(method, path) for path in self.paths]
        if values[0] is None:
            return "-"
        text = " / ".join("-" if one is None else format(self.scale * one, self.form) for one in values)
        own = _value(base, self.paths[0]) if base is not None and self.retained else None
        if not own:
            return text
        measured = method[self.paths[0].partition(".")[0]]
        told = measured.get("retention") is not None
        return f"{text} ({describe_retention(measured) if told else format(values[0] / own, '.0%')})"


def summary_table(evaluation: dict[str, Any]) -> Table:
    """`Method | domain accuracy | drift | IFEval strict/loose | MMLU | open questions | words | weight distance`.
    `evaluation`: the content of `eval.json`, or its `methods` part. The run's main method is bold; MMLU and open
    questions have no column if no method has them."""
    methods: dict[str, Block] = evaluation.get("methods", evaluation)
    # One column per number of examples in the prompt.
    shots = list(dict.fromkeys(name for method in methods.values() for name in method.get("mmlu") or {}))
    opened = any(method.get("open") for method in methods.values())
    columns = [
        _Column("Domain accuracy", ("domain.accuracy",), ".1f", 100),
        _Column("Drift (KL)", ("drift.kl",), ".4f"),
        _Column("IFEval strict / loose", ("ifeval.prompt_strict", "ifeval.prompt_loose"), ".1f", 100, retained=True),
        *(_Column(f"MMLU {name}", (f"mmlu.{name}.accuracy",), ".1f", 100, retained=True) for name in shots),
        *([_Column("Open (judged)", ("open.score",), ".1f", 100, retained=True)] if opened else []),
        _Column("Words (general)", ("length.words_mean",), ".0f", retained=True),
        _Column("Weight distance", ("weight_distance.total",), ".4f"),
    ]
    table = Table("Method")
    for column in columns:
        table.add_column(column.title, justify="right")
    for name, method in methods.items():
        base = methods.get("base") if name != "base" else None
        style = "bold" if name == evaluation.get("main") else ""
        table.add_row(Text(printable(name), style=style), *(column.cell(method, base) for column in columns))
    return table


def _value(method: Block, path: str) -> float | None:
    found: Any = method
    for key in path.split("."):
        found = (found or {}).get(key)
    return found
