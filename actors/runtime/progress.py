"""Progress of a run: one bar per phase on a terminal, and a line now and then in a file or a CI log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from raft_ray.printable import plain

LINE_SECONDS, LINE_SHARE = 10.0, 0.05
"""Off a terminal a phase has a line at most so often, and only when so much more of it is done."""


class _Phase(ProgressColumn):
    """The description; where the terminal is too narrow for all columns, this one is shortened."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Rate(ProgressColumn):
    """Units per second, or seconds per unit where that is the better number."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if not speed else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
        return Text(text, style="progress.data.speed")


class _Bars(Progress):
    """Bars with the columns that fit the terminal's width at the moment."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        def fixed() -> Column:
            return Column(no_wrap=True)

        # Each with the width of a terminal from which on it is there.
        self._by_width = (
            (72, SpinnerColumn(table_column=fixed())),
            (0, _Phase(table_column=Column())),
            (56, BarColumn(bar_width=None, table_column=Column(no_wrap=True, ratio=1))),
            (0, MofNCompleteColumn(table_column=fixed())),
            (0, TaskProgressColumn(table_column=fixed())),
            (72, _Rate(table_column=fixed())),
            (88, TimeElapsedColumn(table_column=fixed())),
            (0, TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=fixed())),
            (112, TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=fixed())),
        )
        self._terminal = console
        super().__init__(console=console, speed_estimate_period=60, expand=True, get_time=clock)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        self.columns = tuple(column for least, column in self._by_width if self._terminal.width >= least)
        return super().make_tasks_table(tasks)


class Bars:
    """The progress of a run; a context manager. `console`: where to draw. Off a terminal (a job's log) each phase
    prints a line when it starts and ends, and in between when time has passed and work was done. `clock`: seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._progress = _Bars(console, clock)
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[float, int]] = {}
        """Of each phase's last line: when it was printed, and what was done then."""

    def __enter__(self) -> Bars:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, phase: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of `phase`; a phase appears with its first update."""
        if phase not in self._tasks:
            self._fit()
            self._tasks[phase] = self._progress.add_task(phase, total=max(total, 1), note=note)
        self._progress.update(self._tasks[phase], completed=done, total=max(total, 1), note=note)
        if not self.console.is_terminal:
            self._say(phase, done, total, note)

    def _say(self, phase: str, done: int, total: int, note: str) -> None:
        now = self._clock()
        elapsed = self._progress.tasks[self._tasks[phase]].elapsed or 0.0
        since, before = self._said.get(phase, (now, -1))
        if before < 0:
            line, done = "started", 0
        elif done >= total and before < max(total, 1):
            line, done = f"{done}/{total} in {elapsed:.0f} s {note}", max(done, 1)
        elif done < total and now - since >= LINE_SECONDS and done - before >= LINE_SHARE * total:
            line = f"{done}/{total} ({done / total:.0%}) after {elapsed:.0f} s {note}"
        else:
            return
        self._said[phase] = now, done
        self.console.print(plain(f"{phase}: {line}".rstrip()))

    def _fit(self) -> None:
        """Hide the oldest finished bars where the terminal has no line for one more: it would cut off the newest."""
        shown = [task for task in self._progress.tasks if task.visible]
        finished = (task for task in shown if task.finished)
        for task in islice(finished, max(0, len(shown) - self.console.height + 3)):
            self._progress.update(task.id, visible=False)

    def track(self, phase: str) -> Callable[[int, int], None]:
        """`update` for one phase."""
        return lambda done, total: self.update(phase, done, total)
