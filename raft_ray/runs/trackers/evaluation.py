"""The main numbers of an evaluation, for a training's run in its trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft_ray.config import Config
from raft_ray.runs.tracked import tracked_lines
from raft_ray.runs.trackers.followed import Trackers
from raft_ray.runs.trackers.tracker import flatten

_MAIN = {
    "domain": ("accuracy",),
    "ifeval": ("prompt_strict", "prompt_loose"),
    "open": ("score",),
    "drift": ("kl",),
    "length": ("words_mean",),
    "weight_distance": ("total",),
}


def scores(block: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, float]:
    """`eval/domain/accuracy` and so on of a model's part of `eval.json`, and `eval/base/...` of the base's."""
    return flatten(_numbers(block), "eval/") | flatten(_numbers(base or {}), "eval/base/")


def track_evaluation(
    config: Config, folder: Path, block: Mapping[str, Any], base: Mapping[str, Any] | None
) -> list[str]:
    """Put a training's evaluation into its runs in the trackers, and the steps that they lack. Returns a line for each
    tracker that failed. Raises `RaftError` for a `metrics.jsonl` that cannot be read."""
    *lines, last = tracked_lines(folder)
    if "evaluation" in last:
        lines.append(last)
    trackers = Trackers(config, folder)
    trackers.rewind(len(lines), lines)
    trackers.evaluated(scores(block, base))
    trackers.close()
    return trackers.failures()


def _numbers(block: Mapping[str, Any]) -> dict[str, Any]:
    found = {part: {key: block[part].get(key) for key in keys} for part, keys in _MAIN.items() if block.get(part)}
    mmlu = {shots: {"accuracy": value.get("accuracy")} for shots, value in (block.get("mmlu") or {}).items()}
    return found | {"mmlu": mmlu}
