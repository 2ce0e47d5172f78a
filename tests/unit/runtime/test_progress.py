"""The bars of a run: what a terminal shows, and the lines where there is none."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from actors.runtime.progress import Bars


def test_off_a_terminal_each_phase_says_when_it_starts_and_ends() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, width=80)) as bars:
        for done in (0, 1, 2, 2):
            bars.update("Stage 2: raft/seed0", done, 2, "sft 0.5")
        bars.update("Stage 2: raft/seed1", 0, 2)
        for _ in range(3):
            bars.update("Nothing to do", 0, 0)
    assert out.getvalue().strip().splitlines() == [
        "Stage 2: raft/seed0: started",
        "Stage 2: raft/seed0: 2/2 in 0 s sft 0.5",
        "Stage 2: raft/seed1: started",
        "Nothing to do: started",
        "Nothing to do: 0/0 in 0 s",
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


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (40, r"Stage 2: raft/seed0 +20/120  17% 08:40"),
        (60, r"Stage 2: raft/seed0 [━╸ ]{10,} 20/120  17% 08:40"),
        (80, r"\S Stage 2: raft/seed0 [━╸ ]{10,} 20/120  17% 5\.2 s each 08:40"),
        (120, r"\S Stage 2: raft/seed0 [━╸ ]{10,} 20/120  17% 5\.2 s each 0:01:44 08:40 sft 0\.512  kl 0\.123"),
    ],
)
def test_a_narrow_terminal_shortens_the_bar_first_and_keeps_what_one_looks_for(width: int, line: str) -> None:
    assert re.fullmatch(line, shown("Stage 2: raft/seed0", width))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_long_name_is_cut_and_the_numbers_behind_it_are_not(width: int) -> None:
    line = shown("Stage 2: raft/learner.lr=1e-5,distill.temperature=0.7/seed12", width)
    assert re.search(r"Stage 2: raft/le?.*20/120  17% (5\.2 s each )?(0:01:44 )?08:40", line)
    assert len(line) <= width


def shown(phase: str, width: int) -> str:
    """The bar of a phase of which 20 of 120 steps, of 5.2 s each, are done, on a terminal."""
    out, now = io.StringIO(), 0.0
    with Bars(Console(file=out, width=width, force_terminal=True, color_system=None), lambda: now) as bars:
        for step in range(21):
            now = step * 5.2
            bars.update(phase, step, 120, "sft 0.512  kl 0.123")
    return re.sub(r"\x1b\[[\d?]*[a-zA-Z]", "", out.getvalue()).strip().splitlines()[-1].strip()


def test_off_a_terminal_lines_come_when_time_has_passed_and_work_was_done() -> None:
    """At most one in 10 s, and at most one in 5 %."""
    out, now = io.StringIO(), 0.0
    with Bars(Console(file=out, width=80), lambda: now) as bars:
        for step in range(401):  # quick ones of an eighth of a second
            bars.update("refine", step, 400)
            now += 0.125
        for step in range(41):  # and slow ones of 5 s
            bars.update("train", step, 40, "sft 0.5")
            now += 5.0
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("refine")] == [
        "refine: started",
        "refine: 80/400 (20%) after 10 s",
        "refine: 160/400 (40%) after 20 s",
        "refine: 240/400 (60%) after 30 s",
        "refine: 320/400 (80%) after 40 s",
        "refine: 400/400 in 50 s",
    ]
    train = [line for line in lines if line.startswith("train")]
    assert train[:2] == ["train: started", "train: 2/40 (5%) after 10 s sft 0.5"]
    assert len(train) == 1 + 19 + 1
