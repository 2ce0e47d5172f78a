"""Experiment trackers: TensorBoard, W&B, MLflow, Trackio and SwanLab show what `metrics.jsonl` has, and nothing else.

```
RunRecords ── a step's line ──> Trackers ──> Follower (a thread of its own for each tracker) ──> Tracker ──> its client
```

Nobody waits for a tracker while a run trains. One that fails or hangs is off from then on, with one line for the user.
`flatten` says what the metrics are called there.
"""

from __future__ import annotations

from raft_ray.runs.trackers.checks import check_trackers
from raft_ray.runs.trackers.evaluation import track_evaluation
from raft_ray.runs.trackers.followed import Trackers
from raft_ray.runs.trackers.tracker import flatten

__all__ = ["Trackers", "check_trackers", "flatten", "track_evaluation"]
