"""The table of `raft-ray doctor CONFIG`: what each role of a run takes of memory and GPUs, and what would still fit."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from raft_ray.config import Config
from raft_ray.distill.memory import Plan
from raft_ray.printable import plain

COLUMNS = ("weights", "gradients", "optimizer", "passes", "KV cache", "process", "sum")


def print_plan(plan: Plan, config: Config, console: Console) -> None:
    """Print a plan at 80 columns, sizes in binary units."""
    kind = f"LoRA of rank {config.learner.lora.rank}" if config.learner.lora.rank else "full weights"
    trains = f"{plan.parameters:,} parameters, {plan.trained:,} trained ({kind})"
    console.print(
        plain(f"{trains}, {config.model.dtype.value}, ZeRO {config.learner.zero_stage}"),
        highlight=False,
    )
    table = Table("", *COLUMNS, box=None, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for place in plan.places:
        there = "not here" if place.capacity is None else f"of {size(place.capacity)}"
        table.add_row(f"[bold]{place.name}[/]", *[""] * (len(COLUMNS) - 2), there, size(place.sum()))
        for need in place.needs:
            times = f"{need.count} x " if need.count > 1 else ""
            parts = (need.weights, need.gradients, need.optimizer, need.passes, need.kv_cache, need.process)
            table.add_row(
                f" {times}{need.role}", *("?" if part is None else size(part) for part in parts), size(need.total)
            )
    console.print(table)
    console.print(
        "passes: activations, or buffers that add gradients up, at most; ?: not known before it runs.", highlight=False
    )
    for key, most in plan.most.items():
        console.print(plain(f"{key}: at most {most:,} fit" if most else f"{key}: nothing fits"), highlight=False)


def size(count: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    value, units = float(count), ["B", "K", "M", "G", "T"]
    while value >= 1000 and len(units) > 1:
        value, _ = value / 1024, units.pop(0)
    return (
        "-" if not count else f"{value:.1f}{units[0]}" if value < 100 and units[0] != "B" else f"{value:.0f}{units[0]}"
    )
