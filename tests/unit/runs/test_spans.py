"""Spans: their file, the shares of busy time as properties, and which role is named as the bottleneck."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.distill.elastic import Load, bottleneck
from raft_ray.distill.order import RowOrder
from raft_ray.errors import RaftError
from raft_ray.runs.records import RunRecords
from raft_ray.runs.spans import Span, loads, read_spans, training_window

times = st.floats(0, 1000)
anyone = st.sampled_from(["rollout-0", "rollout-1", "teacher-0", "learner", "learner-1"])
anything = st.sampled_from(["start", "load", "generate", "score", "wait", "forward_backward", "sync"])


@st.composite
def some_span(draw: st.DrawFn) -> Span:
    start, end = sorted((draw(times), draw(times)))
    return Span(draw(anyone), draw(anything), draw(st.integers(0, 9)), start, end)


def line(**changes: object) -> str:
    span = {"who": "rollout-0", "what": "generate", "step": 7, "start": 12.3, "end": 13.9}
    return json.dumps(span | changes) + "\n"


@settings(deadline=None)
@given(st.lists(some_span()), st.tuples(times, times))
def test_loads_are_shares(spans: list[Span], edges: tuple[float, float]) -> None:
    for load in loads(spans, min(edges), max(edges)).values():
        assert load.members > 0
        assert 0 <= load.busy <= 1
        assert 0 <= load.waiting <= 1


@given(some_span())
def test_a_span_survives_its_json(span: Span) -> None:
    read = Span.from_json(json.loads(json.dumps(span.to_json())))
    assert (read.who, read.what, read.step) == (span.who, span.what, span.step)
    assert (read.start, read.end) == pytest.approx((span.start, span.end), abs=1e-4)


def test_waiting_and_starting_are_no_work_and_overlap_counts_once() -> None:
    spans = [
        Span("learner", "wait", 0, 0, 4),
        Span("learner", "forward_backward", 0, 4, 8),
        Span("learner", "checkpoint", 0, 6, 9),
        Span("rollout-0", "start", 0, 0, 5),
    ]
    assert loads(spans, 0, 10) == {"learner": Load(1, 0.5, 0.4)}
    assert loads(spans, 3, 3) == {}


def test_an_actor_that_joined_late_or_left_counts_for_the_time_that_it_was_there() -> None:
    spans = [Span("rollout-0", "generate", i, 10 * i, 10 * i + 9) for i in range(10)]
    late = [Span("rollout-1", "start", 8, 60, 80), Span("rollout-1", "generate", 8, 80, 90)]
    left = [Span("rollout-2", "generate", 3, 0, 10)]
    assert loads(spans, 0, 100)["rollout"].busy == pytest.approx(0.9)
    assert loads(spans + late, 0, 100)["rollout"] == Load(2, pytest.approx(100 / 120), 0.0)
    assert loads(spans + left, 0, 100)["rollout"] == Load(1, pytest.approx(100 / 110), 0.0)


def test_the_window_leaves_out_starting_and_holds_whole_rounds() -> None:
    spans = [Span("rollout-0", "start", 0, 0, 30), Span("learner", "wait", 0, 1, 40)]
    spans += [Span("learner", "forward_backward", step, 40 + 10 * step, 45 + 10 * step) for step in range(3)]
    assert training_window(spans) == (40, 60)
    assert training_window(spans[:3]) == (1, 45)
    assert training_window([]) == (0, 0)


@pytest.mark.parametrize(
    ("rollout", "teacher", "learner", "role", "advice"),
    [
        (
            Load(2, 0.97, 0),
            Load(1, 0.3, 0),
            Load(1, 0.59, 0.41),
            "rollout",
            "Rollouts are the bottleneck (busy 97%, learners wait 41% of the time): "
            "`raft-ray scale RUN --rollouts 4` or raise rollout.actors.",
        ),
        (
            Load(8, 0.9, 0),
            Load(1, 0.3, 0),
            Load(1, 0.8, 0.2),
            "rollout",
            "Rollouts are the bottleneck (busy 90%, learners wait 20% of the time): "
            "`raft-ray scale RUN --rollouts 9` or raise rollout.actors.",
        ),
        (
            Load(4, 0.5, 0),
            Load(1, 0.93, 0),
            Load(1, 0.1, 0.9),
            "teacher",
            "Teachers are the bottleneck (busy 93%, learners wait 90% of the time): raise teacher.actors to 2.",
        ),
        (
            Load(3, 0.5, 0),
            Load(1, 0.2, 0),
            Load(1, 0.98, 0.02),
            "learner",
            "Learners are the bottleneck (busy 98%, they wait 2% of the time): add learner.num_workers; "
            "rollouts wait, 2 of 3 would do.",
        ),
        (
            Load(1, 0.9, 0),
            Load(1, 0.2, 0),
            Load(1, 0.95, 0.05),
            None,
            "Balanced: rollouts busy 90%, teachers busy 20%, learners busy 95%; learners wait 5% of the time.",
        ),
        (
            Load(1, 0.4, 0),
            Load(1, 0.1, 0),
            Load(1, 0.5, 0.5),
            None,
            "The roles wait for each other (rollouts busy 40%, teachers busy 10%, learners busy 50%): "
            "raise sync.max_staleness so that they overlap.",
        ),
    ],
)
def test_the_bottleneck_is_named_with_what_to_change(
    rollout: Load, teacher: Load, learner: Load, role: str | None, advice: str
) -> None:
    found = bottleneck({"rollout": rollout, "teacher": teacher, "learner": learner})
    assert found is not None
    assert (found.role, found.advice) == (role, advice)


def test_learners_alone_are_their_own_bottleneck_and_without_them_there_is_none() -> None:
    alone = bottleneck({"learner": Load(1, 0.99, 0.01)})
    assert alone is not None
    assert alone.role == "learner"
    assert alone.advice.endswith("add learner.num_workers.")
    assert bottleneck({"rollout": Load(1, 0.9, 0.0)}) is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{\n", "not JSON"),
        ("[]\n", "not a JSON object"),
        (line(who="eval-0"), "`who` must be one of rollout-N, teacher-N, learner-N, found 'eval-0'"),
        (line(what=None), "`what` must say"),
        (line(step=-1), "`step` must be a whole number"),
        (line(start=None), "`start` and `end` must be seconds"),
        (line(end=1.0), "one after the other"),
        (line(end=float("nan")), "`start` and `end` must be seconds"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(line() + "\n" + bad + line())
    with pytest.raises(RaftError, match=rf"spans\.jsonl line 3: .*{message}"):
        read_spans(path)


def test_the_torn_last_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    assert read_spans(path) == []
    path.write_text(line() + line()[:30])
    assert read_spans(path) == [Span("rollout-0", "generate", 7, 12.3, 13.9)]


def add_step(records: RunRecords, step: int) -> None:
    records.add(step, [], {"seconds": {}})


def test_records_write_spans_with_the_step_and_on_closing(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, RowOrder(8, 2, 1, 0))
    path = tmp_path / "spans.jsonl"
    add_step(records, 0)
    assert not path.exists()
    first, second = Span("learner", "sync", 0, 1, 2), Span("rollout-0", "generate", 1, 2, 3)
    records.span(first)
    assert not path.exists()
    add_step(records, 1)
    assert read_spans(path) == [first]
    records.span(second)
    records.close()
    assert read_spans(path) == [first, second]


def test_a_restart_drops_the_spans_of_lost_steps_written_or_not(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, RowOrder(8, 2, 1, 0))
    records.rewind(0)
    kept = [Span("learner", "sync", 0, 1, 2), Span("learner", "sync", 1, 2, 3)]
    for span in [kept[0], Span("rollout-0", "generate", 2, 1, 4)]:
        records.span(span)
    add_step(records, 0)
    for span in [kept[1], Span("rollout-0", "generate", 3, 4, 5)]:
        records.span(span)
    records.rewind(2)
    again = Span("rollout-0", "generate", 2, 6, 7)
    records.span(again)
    records.close()
    assert read_spans(tmp_path / "spans.jsonl") == [*kept, again]


def test_the_times_of_a_resumed_run_go_on_where_its_file_ends(tmp_path: Path) -> None:
    (tmp_path / "spans.jsonl").write_text(line(step=0) + line(step=9, end=99) + line()[:20])
    records = RunRecords(tmp_path, RowOrder(8, 2, 1, 0))
    records.rewind(1)
    records.span(Span("learner", "sync", 1, 0.5, 1))
    records.rewind(2)
    records.span(Span("learner", "sync", 2, 2, 3))
    records.close()
    spans = read_spans(tmp_path / "spans.jsonl")
    assert [(s.step, round(s.start, 4), round(s.end, 4)) for s in spans] == [
        (0, 12.3, 13.9),
        (1, 14.4, 14.9),
        (2, 15.9, 16.9),
    ]
