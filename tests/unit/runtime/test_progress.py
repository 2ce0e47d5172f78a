"""The bars of a run: what a terminal shows, and the lines where there is none."""

from __future__ import annotations

import io

from rich.console import Console

from actors.runtime.progress import Bars


def test_off_a_terminal_each_phase_says_when_it_starts_and_ends() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, width=80)) as bars:
        for done in (0, 1, 2, 2):
            bars.update("Stage 2: raft/seed0", done, 2, "sft 0.5")
        bars.update("Stage 2: raft/seed1", 0, 2)
    assert out.getvalue().strip().splitlines() == [
        "Stage 2: raft/seed0: started",
        "Stage 2: raft/seed0: 2/2 in 0 s sft 0.5",
        "Stage 2: raft/seed1: started",
    ]


def test_a_terminal_keeps_the_newest_bars_and_those_that_go_on() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, width=100, height=6, force_terminal=True)) as bars:
        bars.update("All trainings", 3, 9)
        for number in range(9):
            bars.update(f"training {number}", 1, 1)
        bars.update("training 9", 0, 1)
    shown = [line for line in out.getvalue().splitlines() if "training" in line][-4:]
    for line, phase in zip(shown, ["All trainings", "training 7", "training 8", "training 9"], strict=True):
        assert phase in line
