"""Memory of every process of a run over time, for the measurements that want to see it flat.

Knows nothing about what runs.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

MIB = 2**20
SHARED = "shared memory of the machine"
_PARTS = ("raylet", "gcs_server")


class MemoryWatch:
    """Reads the unique memory (USS) of this process's descendants, and the shared memory in use, every two seconds.

    Args:
        roles: by parts of command lines (of Ray's workers, their titles), such as `RolloutActor`, what to call these
            processes; others than these, Ray's own and this process are left out. The first part that fits counts.
        me: what to call this process.
        early: whether the run has come so far that its memory counts.

    Attributes:
        series: `role (pid)` -> (seconds, MiB) of each reading.
        mark: seconds at which `early` was true first; none if it never was.
    """

    def __init__(self, roles: dict[str, str], early: Callable[[], bool], me: str = "driver") -> None:
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.mark: float | None = None
        self._roles = roles | {part: part for part in _PARTS}
        self._me = me
        self._early = early
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        start = time.perf_counter()
        while not self._stop.wait(2.0):
            now = time.perf_counter() - start
            if self.mark is None and self._early():
                self.mark = now
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    role = self._me if process.pid == os.getpid() else self._role_of(process)
                    if role is not None:
                        uss = process.memory_full_info().uss
                        self.series[f"{role} ({process.pid})"].append((now, uss / MIB))
                except psutil.Error:
                    continue
            self.series[SHARED].append((now, psutil.virtual_memory().shared / MIB))

    def _role_of(self, process: psutil.Process) -> str | None:
        line = " ".join(process.cmdline()) or process.name()
        # The command lines of Ray's own processes name each other's programs.
        line = process.name() if process.name() in _PARTS else line
        return next((role for part, role in self._roles.items() if part in line), None)

    def growth(self) -> dict[str, dict[str, float]]:
        """`early_mib` and `late_mib` of each process that was there long enough: medians of its first and last fifth
        of readings after the mark."""
        found = {}
        for name, points in self.series.items():
            values = [value for at, value in points if self.mark is not None and at >= self.mark]
            if len(values) >= 10:
                part = max(3, len(values) // 5)
                early, late = statistics.median(values[:part]), statistics.median(values[-part:])
                found[name] = {"early_mib": early, "late_mib": late}
        return found

    def print(self, console: Console) -> None:
        table = Table("process", "MiB after a fifth", "MiB at the end", "growth")
        for name, row in self.growth().items():
            early, late = row["early_mib"], row["late_mib"]
            table.add_row(name, f"{early:.0f}", f"{late:.0f}", f"{late / early - 1:+.1%}")
        console.print(table)

    def draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes: Any = figure.subplots()
        for name in self.growth():
            if name != SHARED:
                points = self.series[name]
                axes.plot([at for at, _ in points], [value for _, value in points], label=name.rpartition(" ")[0])
        axes.set_xlabel("seconds")
        axes.set_ylabel("memory of its own, MiB")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=130)
