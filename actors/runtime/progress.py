"""Progress bars of a run on the terminal: one a phase, with rate and time left. Everything else goes to log files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from raft_ray.printable import plain


class _Rate(TextColumn):
    """Units a second, or seconds a unit where that is the better number."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="progress.data.speed")


class Bars:
    """The bars of a run; a context manager.

    Args:
        console: where to draw. Off a terminal (a job's log) each phase prints a line when it starts and ends.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            speed_estimate_period=60,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, phase: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of `phase`; a phase appears with its first update."""
        started = phase in self._tasks
        if not started:
            self._fit()
            self._tasks[phase] = self._progress.add_task(phase, total=max(total, 1), note=note)
        self._progress.update(self._tasks[phase], completed=done, total=max(total, 1), note=note)
        if not self.console.is_terminal:
            task = self._progress.tasks[self._tasks[phase]]
            if not started:
                self.console.print(f"{plain(phase)}: started")
            elif done >= total and not task.fields.get("said"):
                self._progress.update(self._tasks[phase], said=True)
                self.console.print(plain(f"{phase}: {done}/{total} in {task.elapsed or 0:.0f} s {note}"))

    def _fit(self) -> None:
        """Hide the oldest finished bars where the terminal has no line for one more: it would cut off the newest."""
        shown = [task for task in self._progress.tasks if task.visible]
        finished = (task for task in shown if task.finished)
        for task in islice(finished, max(0, len(shown) - self.console.height + 3)):
            self._progress.update(task.id, visible=False)

    def track(self, phase: str) -> Callable[[int, int], None]:
        """`update` for one phase."""
        return lambda done, total: self.update(phase, done, total)
