"""A run's records: `metrics.jsonl`, `trace.jsonl`, `spans.jsonl` and its trackers, written by one process, by line."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raft_ray.distill.order import RowOrder, SampleId
from raft_ray.distill.trajectory import SampleInfo
from raft_ray.files import write_whole, writing
from raft_ray.json_files import append_lines, read_lines
from raft_ray.runs.spans import Span, read_spans
from raft_ray.runs.tracked import EVALUATIONS, tracked_lines
from raft_ray.runs.trackers import Trackers

PHASES = (
    *("rollout", "teacher", "load", "dispatch"),  # of the other roles, which may overlap the learner's
    *("wait", "forward_backward", "optimizer", "sync", "checkpoint", "total"),
)
"""What `seconds` of a step are taken by."""


class RunRecords:
    """Writes the records of a run folder; see `docs/design.md` for their fields.

    Args:
        run_dir: the folder; made if it is missing.
        order: which rows each step trains on.
        trackers: get what `metrics.jsonl` gets.
    """

    def __init__(self, run_dir: str | Path, order: RowOrder, trackers: Trackers | None = None) -> None:
        self._dir = Path(run_dir)
        self._order = order
        self._trackers = trackers
        with writing(self._dir):
            self._dir.mkdir(parents=True, exist_ok=True)
        self.last: dict[str, Any] | None = None
        self._spans: list[Span] = []
        self._began: float | None = None
        """Seconds by which this process began after the run did; unknown before the first `rewind`."""
        self._coming: dict[str, Any] = {"step": 0}
        """What trackers get with the next step: the evaluation of the weights that it begins with."""

    def rewind(self, step: int) -> None:
        """Forget everything from `step` on: a resumed run writes it again, and each line stays unique."""
        # An evaluation's step is the number of steps done: that of `step` is of the weights that a run goes on from.
        for name, end in (("metrics.jsonl", step), ("trace.jsonl", step), (EVALUATIONS, step + 1)):
            path = self._dir / name
            if path.exists():
                kept = [line for _, line in read_lines(path, ["step"]) if line["step"] < end]
                write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        if self._trackers:
            *tracked, self._coming = tracked_lines(self._dir)
            self._trackers.rewind(step, tracked)
        self._spans = [span for span in self._spans if span.step < step]
        path = self._dir / "spans.jsonl"
        spans = [span for span in read_spans(path) if span.step < step]
        if path.exists():
            write_whole(path, "".join(json.dumps(span.to_json()) + "\n" for span in spans))
        if self._began is None:
            self._began = max((span.end for span in spans), default=0.0)

    def span(self, span: Span) -> None:
        """Record what an actor did; it reaches `spans.jsonl` with the next step's records, or on closing. Its times are
        seconds since this process began the run. In a resumed run's file they go on where those of the process before
        it end."""
        self._spans.append(span)

    def quarantined(self) -> list[int]:
        """Rows that engines died on again and again, also in what the run did before it was resumed."""
        return [line["row"] for _, line in read_lines(self._dir / "quarantined.jsonl", ["row"])]

    def quarantine(self, row: int, step: int, cause: str) -> None:
        """Record a row that the run goes on without."""
        append_lines(self._dir / "quarantined.jsonl", [{"row": row, "step": step, "cause": cause}])

    def event(self, what: str, who: str, node: str, text: str) -> None:
        """Record what happened to the run's actors: `lost`, `given up`, `scale`."""
        write_event(self._dir, what, who, node, text)

    def add(
        self, step: int, infos: Sequence[SampleInfo], record: dict[str, Any], quarantined: Collection[SampleId] = ()
    ) -> None:
        """Write a step: `record` is the learner's part, `infos` are the step's samples (none without rollouts).
        `quarantined`: samples of the step whose rows were quarantined, so that nothing was trained on them."""
        sample_ids = [sample_id for sample_id in self._order.batch_of(step) if sample_id not in quarantined]
        ages = [step - info.version for info in infos]
        own = [info for info in infos if self._order.owns(info.sample_id)]
        rows = sum(map(self._order.owns, sample_ids))
        line: dict[str, Any] = {
            "step": step,
            "epoch": sample_ids[0].epoch,
            **record,
            "rows": rows,
            "response_length": _mean([info.length for info in own]),
            "truncated": _mean([float(info.truncated) for info in own]),
            "teacher_mass": _mean([info.teacher_mass for info in own]),
            "staleness": _mean(ages),
            "staleness_max": max(ages, default=None),
            "staleness_rows": {str(age): ages.count(age) for age in sorted(set(ages))} or None,
            "target_bytes_per_token": (
                sum(i.target_bytes for i in infos) / sum(i.length for i in infos) if infos else None
            ),
            "seconds": {phase: round(record["seconds"].get(phase, 0.0), 4) for phase in PHASES},
        }
        if self._order.rehearsal:
            rehearsed = [info for info in infos if not self._order.owns(info.sample_id)]
            line |= {
                "rehearsal_rows": len(sample_ids) - rows,
                "rehearsal_length": _mean([info.length for info in rehearsed]),
                "rehearsal_truncated": _mean([float(info.truncated) for info in rehearsed]),
            }
        append_lines(self._dir / "metrics.jsonl", [line])
        by_id = {info.sample_id: info for info in infos}
        append_lines(
            self._dir / "trace.jsonl",
            [
                _trace(step, sample_id, by_id.get(sample_id))
                | ({} if self._order.owns(sample_id) else {"rehearsal": True})
                for sample_id in sample_ids
            ],
        )
        self._write_spans()
        if self._trackers:
            self._trackers.log(line | self._coming)
        self._coming = {"step": step + 1}
        self.last = line

    def add_evaluation(self, line: dict[str, Any]) -> None:
        """Write an evaluation that was made while the method trains (`raft_ray.evaluate.validation`)."""
        append_lines(self._dir / EVALUATIONS, [line])
        self._coming["evaluation"] = line

    def close(self) -> None:
        """Write the last spans and let the trackers finish."""
        self._write_spans()
        if self._trackers:
            if "evaluation" in self._coming:
                self._trackers.log(self._coming)
            self._trackers.close()

    def _write_spans(self) -> None:
        began = self._began or 0.0
        shifted = [replace(span, start=span.start + began, end=span.end + began) for span in self._spans]
        if shifted:
            append_lines(self._dir / "spans.jsonl", [span.to_json() for span in shifted])
        self._spans.clear()


def _trace(step: int, sample_id: SampleId, info: SampleInfo | None) -> dict[str, Any]:
    """A trained row's line; nothing but the row where no model sampled for it."""
    line = {
        "epoch": sample_id.epoch,
        "step": step,
        "row": sample_id.row,
        "version": info and info.version,
        "response_length": info and info.length,
        "rollout": info and info.rollout,
    }
    return line | {"versions": info.versions} if info and info.versions else line


def write_event(run_dir: Path, what: str, who: str, node: str, text: str) -> None:
    """Append to `events.jsonl` of a run folder."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    append_lines(run_dir / "events.jsonl", [{"at": at, "what": what, "who": who, "node": node, "text": text}])


def steps_done(run_dir: str | Path) -> int:
    """Optimizer steps that `metrics.jsonl` of a run folder has on record; 0 without one. Raises `RaftError`."""
    return len(read_lines(Path(run_dir) / "metrics.jsonl", ["step"]))


def missing_steps(run_dir: Path, step: int) -> dict[str, int]:
    """By file, how many of the first `step` steps are not in a run's `metrics.jsonl` and `trace.jsonl`. Files that have
    all are left out. Raises `RaftError` for a malformed line."""
    found = {}
    for name in ("metrics.jsonl", "trace.jsonl"):
        there = {line["step"] for _, line in read_lines(run_dir / name, ["step"])}
        if missing := len(set(range(step)) - there):
            found[name] = missing
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
