"""What `raft-ray status` shows of a run."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from raft_ray.cli import app
from raft_ray.runs.status import status_view


def shown(**changes: Any) -> str:
    status: dict[str, Any] = {
        "step": 7,
        "steps": 60,
        "version": 7,
        "last": {"staleness": 0.5, "staleness_max": 1},
        "error": None,
        "actors": [
            {
                "name": "rollout-0",
                "node": "a",
                "state": "generate",
                "seconds": 3.4,
                "version": 7,
                "rows": 56,
                "restarts": 0,
            },
            {
                "name": "teacher-0",
                "node": "b",
                "state": "idle",
                "seconds": 0.2,
                "version": None,
                "rows": 48,
                "restarts": 2,
            },
        ],
        "learners": 2,
        "ranks": [{"name": "learner-0", "state": "trains step 7", "seconds": 12.0}],
        "waits_for_room": None,
        "queue": {"in_flight": 8, "ready": 16, "limit": 32, "came_back": 0, "quarantined": 0},
        "rates": {"steps_per_minute": 8.25, "rows_per_second": 2.2, "tokens_per_second": 91.0},
        "advice": "Rollouts are the bottleneck",
        **changes,
    }
    console = Console(width=160, record=True, file=StringIO())
    console.print(status_view(status))
    return console.export_text()


def test_it_shows_progress_actors_queue_rates_and_advice() -> None:
    text = shown()
    assert "step 7 of 60, weights of version 7, 2 learners: 8.2 steps/min, 2.20 rows/s, 91 tokens/s" in text
    assert "staleness 0.5 (most 1)" in text
    assert "rehearsal" not in text
    assert "rehearsal KL 0.013" in shown(last={"rehearsal_kl": 0.0125})
    (rollout,) = [line for line in text.splitlines() if "rollout-0" in line]
    assert [cell.strip() for cell in rollout.strip("│").split("│")] == [
        "rollout-0",
        "a",
        "generate",
        "3",
        "7",
        "56",
        "0",
    ]
    (teacher,) = [line for line in text.splitlines() if "teacher-0" in line]
    assert [cell.strip() for cell in teacher.strip("│").split("│")] == ["teacher-0", "b", "idle", "0", "-", "48", "2"]
    (learner,) = [line for line in text.splitlines() if "learner-0" in line]
    assert [cell.strip() for cell in learner.strip("│").split("│")] == ["learner-0", "-", "trains step 7", "12", *"---"]
    assert "8 in flight, 16 ready, 24 of 32 places taken\n" in text
    assert "Rollouts are the bottleneck" in text
    assert "stopped" not in text


def test_it_shows_what_went_wrong() -> None:
    queue = {"in_flight": 8, "ready": 0, "limit": 32, "came_back": 4, "quarantined": 1}
    text = shown(error="rollout-0 on a died", queue=queue, waits_for_room="42 of 50 wait for room")
    assert "rollout actors: 42 of 50 wait for room" in text
    assert "stopped: rollout-0 on a died" in text
    assert "4 came back from a lost actor, 1 quarantined (quarantined.jsonl)" in text


def test_it_shows_the_last_evaluation_and_the_one_that_goes_on() -> None:
    line = {"step": 40, "accuracy": 0.61, "drift": 0.123, "of_base": {"accuracy": 1.7, "words": 0.98, "ifeval": None}}
    text = shown(evaluation=line, evaluating={"step": 60, "done": 32, "total": 188})
    assert "evaluation of step 40: accuracy 61.0%, drift 0.123 (of the base's: accuracy 170%, words 98%)" in text
    assert "evaluates step 60: 32 of 188 answers" in text
    assert "evaluat" not in shown(evaluation=None, evaluating=None)


def test_a_run_that_has_just_begun_and_one_without_actors_can_be_shown() -> None:
    assert "1 learner\n" in shown(last=None, rates={}, advice=None, learners=1)
    text = shown(actors=[], ranks=[], advice=None)
    assert "places" not in text


@pytest.mark.parametrize("command", [["status", "no-such-run"], ["scale", "no-such-run", "--rollouts", "2"]])
def test_a_folder_in_which_nothing_trains_is_one_line_and_exit_code_1(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["raft-ray", *command])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "no-such-run: nothing trains in this run folder at the moment (no cluster.json)" in line
