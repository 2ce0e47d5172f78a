"""The section on who worked when: which steps, whose lanes, and what limits the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_fixture import report, spans


def write_spans(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "spans.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def drawn(page: str) -> str:
    """The timeline's SVG."""
    return page.split('<div class="wide" tabindex="0"><svg', 1)[1].split("</svg>")[0]


def test_the_timeline_shows_eight_steps_from_the_middle_and_what_limits_the_run(run: Path) -> None:
    text = report(run).sections["Who worked when"]
    assert "Rollouts are the bottleneck (busy 98%, learners wait 28% of the time): raft-ray scale RUN" in text
    assert "Steps 30 to 37" in text
    assert "generate score load weights wait forward + backward optimizer sync checkpoint" in text
    assert "Rollouts (2) 98% Teachers 14% Learners 72% wait 28%" in text
    chart = drawn((run / "report.html").read_text())
    assert 'aria-label="Steps 30 to 37: what rollout-0, rollout-1, teacher-0, learner did when"' in chart
    assert "rollout-1: generate, step 33" in chart
    assert "learner: checkpoint, step 34" in chart
    assert "step 27" not in chart
    assert "start," not in chart


def test_the_timeline_of_a_short_run_leaves_out_its_start_and_one_of_many_actors_names_the_rest(run: Path) -> None:
    write_spans(run, spans(rollouts=11, steps=3))
    text = report(run).sections["Who worked when"]
    assert "Steps 0 to 2" in text
    assert "Not shown: 3 more rollouts." in text
    chart = drawn((run / "report.html").read_text())
    assert "rollout-7" in chart
    assert "rollout-8" not in chart
    assert "start," not in chart


def test_a_run_without_spans_or_without_a_trained_step_leaves_the_timeline_out(run: Path) -> None:
    write_spans(run, spans(steps=0))
    assert "Left out: spans.jsonl has no step" in report(run).sections["Who worked when"]
    (run / "spans.jsonl").unlink()
    assert "Left out: this run has no spans.jsonl" in report(run).sections["Who worked when"]


def test_a_span_of_an_unknown_kind_is_drawn_under_its_own_name(run: Path) -> None:
    other = {"who": "learner", "what": "<b>export</b>", "step": 33, "start": 235.0, "end": 236.0}
    write_spans(run, [*spans(), other])
    assert "sync checkpoint <b>export</b>" in report(run).sections["Who worked when"]
